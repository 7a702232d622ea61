"""Image classification: one label for each image, scored by accuracy."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from glora_search.errors import UserError, invalid
from glora_search.recipe.schema import Recipe
from glora_search.tasks.base import Labelled
from glora_search.tasks.rows import Column, with_column
from glora_search.tasks.splits import undecoded


class ImageClassification(Labelled):
    """Reads ``image_column`` and ``label_column``; images are decoded and resized as their batch is made."""

    task_type = None
    one_label = True
    auto_class = AutoModelForImageClassification
    pipeline = "image-classification"
    example = "'your.png'"

    def __init__(self, recipe: Recipe) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise UserError("image-classification needs the package pillow: pip install 'glora-search[vision]'")
        self._images: dict[str, Dataset] = {}
        super().__init__(recipe)

    def inputs(self) -> list[Column]:
        """``image_column``."""
        return self.columns("image_column")

    def load_processor(self) -> Any:
        """The image processor of the base model."""
        return self.load(AutoImageProcessor)

    def make_collator(self) -> Any:
        """Makes ``pixel_values [rows, channels, height, width]`` and ``labels [rows]``."""
        return ImageCollator(self.processor)

    def row_notes(self, share: float = 0.0) -> list[str]:
        """See `Task`; images are looked at where this is asked, and once."""
        what = "have transparency, which the model does not see: save them without"
        for key, images in self._images.items():
            if key not in self._counts:
                clear = sum(map(_is_transparent, undecoded(images, "pixel_values")))
                self._counts[key] = (len(images), [(clear, what)])
        return super().row_notes(share)

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        self._images[key] = super()._encoded(rows, key)
        return self._images[key]

    def encode(self, rows: Dataset) -> Dataset:
        """Columns ``pixel_values``, still images in a file's form, and ``labels``."""
        column = self.column("image_column")
        if not isinstance(rows.features[column], Image):
            raise invalid("data.image_column", column, f"a column of images, not of {rows.features[column]}")
        images = rows.select_columns([column]).rename_column(column, "pixel_values")
        return with_column(images, "labels", self.classes(rows))


def in_colours(image: Any) -> Any:
    """A pillow image as RGB.

    Raises:
        ValueError: its values are not of 8 bits; pillow would cut them at 255, which leaves most images white.
    """
    check_bits(image)
    return image.convert("RGB")


def check_bits(image: Any) -> None:
    """Raise a ValueError where a pillow image has values of more than 8 bits, see `in_colours`."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"its pixels are of mode {image.mode}; save it with 8 bits for each colour")


def _is_transparent(file: dict[str, Any]) -> bool:
    """Whether an image can have transparency, by what its file begins with; of one that is damaged, others say so."""
    import PIL.Image

    try:
        with PIL.Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) as image:
            return image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info
    except OSError:
        return False


class ImageCollator:
    """Rows with images -> a batch, by a model's image processor."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A batch."""
        batch = self.processor([in_colours(row["pixel_values"]) for row in rows], return_tensors="pt")
        return {"pixel_values": batch["pixel_values"], "labels": torch.tensor([row["labels"] for row in rows])}
