"""Columns of json that hold texts in some rows, and numbers or lists in others.

``datasets`` reads such a column as json, so that every text which is json too becomes what it says: with a number, or
NaN, in another row, the text ``007`` is the number 7.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Json

from glora_search.errors import invalid
from glora_search.files.cells import is_missing, text_of

ALLOWED = "values of one kind, such as text: as json, it holds numbers or NaN among texts"


def mixed_columns(rows: Dataset) -> list[str]:
    """The columns that are read as json, or whose lists are."""
    return [name for name, kind in rows.features.items() if isinstance(getattr(kind, "feature", kind), Json)]


def check_unread(rows: Dataset, name: str, split: str, place: str) -> None:
    """Refuse a column with numbers: they may have been texts."""
    if any(_holds_numbers(value) for value in rows[name]):
        raise invalid(f"data.{split}", f"{place}, column {name}", ALLOWED)


def _holds_numbers(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, list) and any(map(_holds_numbers, value)))


def as_texts(values: list[Any]) -> list[Any] | None:
    """A column as it is written, each value a text; where some are lists of texts, all are.

    Returns:
        None where some are objects, or lists of objects or lists; nobody takes those for texts.
    """
    lists = [value for value in values if isinstance(value, list)]
    inner = [value for own in lists for value in own]
    if any(isinstance(value, dict) for value in [*values, *inner]) or any(isinstance(value, list) for value in inner):
        return None
    texts = [list(map(_as_text, value)) if isinstance(value, list) else _as_text(value) for value in values]
    return [[text] if lists and isinstance(text, str) else text for text in texts]


def _as_text(value: Any) -> str | None:
    return None if is_missing(value) else text_of(value)
