"""Rows to score on that are in another split too."""

from __future__ import annotations

from collections.abc import Hashable

from datasets import Dataset, Image

from glora_search.tasks import Task
from glora_search.tasks.fingerprints import image_digest


def repeated_rows(task: Task, test: Dataset) -> list[str]:
    """How many rows to score on were learned from, and how many test rows the model is chosen by.

    Args:
        test: the encoded test rows.
    """
    keys = {
        split: _keys(rows)
        for split, rows in {"train": task.train_rows, "validation": task.validation, "test": test}.items()
    }
    said = []
    for split, others in {"validation": ("train",), "test": ("train", "validation")}.items():
        for other in others:
            known = set(keys[other])
            if count := sum(key in known for key in keys[split]):
                rows = f"{count} of {len(keys[split])} rows of data.{split}"
                said.append(f"{rows} are {other} rows too, so scores on this split are too optimistic")
    return said


def _keys(rows: Dataset) -> list[Hashable]:
    """What is equal for rows that a model cannot tell apart; nothing for rows that are neither texts nor images."""
    if "input_ids" in rows.column_names:
        return list(map(tuple, rows["input_ids"]))
    if isinstance(rows.features.get("pixel_values"), Image):
        return list(map(image_digest, rows.cast_column("pixel_values", Image(decode=False))["pixel_values"]))
    return []
