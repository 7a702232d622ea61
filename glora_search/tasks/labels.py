"""Labels: the names of a column's labels, and their check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from glora_search.errors import invalid
from glora_search.tasks.rows import with_column

Labels = list[list[str]]
"""For each row the labels that it has: one, one for each of its words, or none."""


def labels_of(rows: Dataset, column: str) -> Labels:
    """The labels of each row, of a column of `named_labels`."""
    return [[value] if isinstance(value, str) else value for value in rows[column]]


def check_labels(found: Labels, known: Sequence[str], key: str) -> None:
    """Refuse rows with a label that train has not.

    Args:
        found: of the rows.
        known: the label names of train.
        key: the split, for the message.

    Raises:
        UserError: names the label, and those that train has.
    """
    unknown = sorted({name for names in found for name in names} - set(known))
    if unknown:
        raise invalid(key, f"label {unknown[0]!r}", f"labels that train has: {', '.join(known)}")


def named_labels(rows: Dataset, column: str, key: str) -> Dataset:
    """The rows with a label's name, or a list of names, in place of its number.

    Args:
        column: of the labels.
        key: the split, for the message.

    Raises:
        UserError: a row has no label.
    """
    feature = rows.features[column]
    classes = getattr(feature, "feature", feature)  # of a list, those of what it holds

    def name(value: Any) -> str:
        if isinstance(classes, ClassLabel) and value is not None:
            return str(classes.int2str(int(value))) if value >= 0 else ""
        return "" if value is None else str(value)

    values = list(rows[column])
    names = [[name(item) for item in value] if isinstance(value, list) else name(value) for value in values]
    for number, found in enumerate(names, 1):
        if not all(item.strip() for item in ([found] if isinstance(found, str) else found)):
            raise invalid(key, f"no label in row {number}", "rows that each have a label")
    return rows if names == values else with_column(rows, column, names)
