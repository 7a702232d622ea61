"""Rows to score on that tell little: they are in another split too, or all have the same target."""

from __future__ import annotations

from collections.abc import Hashable

from datasets import Dataset, Image

from glora_search.tasks import Task
from glora_search.tasks.fingerprints import image_digest
from glora_search.tasks.splits import undecoded


def rows_that_tell_little(task: Task, test: Dataset) -> list[str]:
    """Notes on the validation rows and the test rows.

    Args:
        test: the encoded test rows.
    """
    return [*_repeated_rows(task, test), *_same_targets(task, test)]


def _same_targets(task: Task, test: Dataset) -> list[str]:
    """Which split has rows of one label alone, or of one number."""
    said = []
    for split, rows in {"validation": task.validation, "test": test}.items():
        if task.target in ("label", "number") and len(set(rows["labels"])) == 1:
            why = "so scores on this split hardly tell a good model from a bad one"
            said.append(f"all {len(rows)} rows of data.{split} have the same {task.target}, {why}")
    return said


def _repeated_rows(task: Task, test: Dataset) -> list[str]:
    """How many rows to score on were learned from, and how many test rows the model is chosen by."""
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
        return list(map(image_digest, undecoded(rows, "pixel_values")))
    return []
