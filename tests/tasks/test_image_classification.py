"""Image classification: images and their labels."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.run.prepare import check
from glora_search.run.scored_rows import rows_that_tell_little
from glora_search.tasks import make_task
from glora_search.tasks.image_classification import in_colours


def test_images_become_pixels_of_the_models_size_in_every_split(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "a", 20)}
    made = make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    batch = made.collator([made.train[0], made.train[1]])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    brightness = made.collator(list(made.train))["pixel_values"].mean((1, 2, 3))
    light = torch.tensor(made.train["labels"]) == made.data.labels.index("light")
    assert brightness[light].min() > brightness[~light].max()
    made.model()
    assert made.modules_to_save == ["classifier"]


def test_images_of_another_column_and_texts_in_their_place_are_refused(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "a", 20), "image_column": "picture"}
    with pytest.raises(UserError, match=r"data\.image_column: got 'picture'.*image, label"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    pd.DataFrame(make.rows()).to_csv(tmp_path / "a.csv", index=False)
    data = {"source": "csv", "train": str(tmp_path / "a.csv"), "image_column": "text"}
    with pytest.raises(UserError, match=r"data\.image_column: got 'text'; allowed: a column of images"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))


def test_image_classification_without_pillow_names_the_package(tiny, recipe, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(UserError, match=r"pip install 'glora-search\[vision\]'"):
        make_task(
            Recipe.model_validate(recipe("x", {"source": "imagefolder", "train": "x"}, type="image-classification"))
        )


def test_repeated_images_are_said(tiny, recipe, make, tmp_path):
    train = make.images(tmp_path / "train", 12)
    test = make.images(tmp_path / "test", 4, seed=1)
    shutil.copy(tmp_path / "train" / "dark" / "0.png", tmp_path / "test" / "dark" / "more.png")
    data = {"source": "imagefolder", "train": train, "test": test}
    task = make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    (note,) = rows_that_tell_little(task, task.test_split())
    assert note.startswith("1 of 5 rows of data.test are ")


def test_images_in_a_folder_within_their_class_are_refused(tiny, recipe, make, tmp_path):
    train = make.images(tmp_path / "train", 12)
    (tmp_path / "train" / "dark" / "old").mkdir()
    shutil.copy(tmp_path / "train" / "dark" / "0.png", tmp_path / "train" / "dark" / "old" / "0.png")
    data = {"source": "imagefolder", "train": train}
    with pytest.raises(UserError, match=r"^data\.train: got '.*dark/old/0\.png'; allowed: each image in the folder of"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))


def test_classes_may_lie_below_folders_that_hold_nothing_else(tiny, recipe, make, tmp_path):
    make.images(tmp_path / "all" / "images", 12)
    data = {"source": "imagefolder", "train": str(tmp_path / "all")}
    made = make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    assert made.data.labels == ["dark", "light"]


def test_classes_in_different_folders_are_refused(tiny, recipe, make, tmp_path):
    for year in ("2023", "2024"):
        make.images(tmp_path / "all" / year, 12)
    data = {"source": "imagefolder", "train": str(tmp_path / "all")}
    with pytest.raises(UserError, match=r"got '.*2024/.*; allowed: .*the classes' folders side by side"):
        make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))


def test_images_of_16_bits_are_refused_by_the_name_of_their_file(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "train", 12)}
    pixels = np.full((16, 16), 20_000, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "train" / "dark" / "0.png")
    allowed = r"allowed: rows that can be read and put into a batch \(.*of mode I;16; save it with 8 bits"
    with pytest.raises(UserError, match=rf"^data\.\w+: got '.*dark/0\.png'; {allowed}"):
        check(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))


def test_images_with_transparency_are_counted(tiny, recipe, make, tmp_path):
    data = {"source": "imagefolder", "train": make.images(tmp_path / "train", 12), "validation_fraction": 0.25}
    for image in (tmp_path / "train" / "dark").iterdir():
        Image.open(image).convert("RGBA").save(image)
    made = make_task(Recipe.model_validate(recipe(tiny("vit"), data, type="image-classification")))
    dark = made.train["labels"].count(made.data.labels.index("dark"))
    note = f"{dark} of {len(made.train)} rows of data.train have transparency, which the model does not see"
    assert made.row_notes()[0] == f"{note}: save them without"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_images_of_other_modes_are_learned_in_colours(mode):
    assert in_colours(Image.new(mode, (4, 4))).mode == "RGB"
