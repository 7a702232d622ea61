"""Columns of rows: reading one as text, and putting one in."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetInfo, Features, Value

from glora_search.errors import invalid
from glora_search.files.cells import is_missing, text_of

Column = tuple[str, str]
"""The key of a recipe that names a column, and the column."""


def texts_of(rows: Dataset, column: Column) -> list[str]:
    """A column as text; what is missing is empty, and numbers can be a part of a prompt, or a response.

    Raises:
        UserError: it holds lists, mappings or bytes, or what is to be text is numbers.
    """
    key, name = column
    kinds = (str,) if key in ("data.text_column", "data.text_pair_column") else (str, int, float)
    values = list(rows[name])
    odd = next((value for value in values if value is not None and not isinstance(value, kinds)), None)
    if odd is not None:
        raise invalid(key, name, f"a column of text, not of {reprlib.repr(odd)}{_chats(odd)}")
    return [text_of(value) for value in values]


def _chats(value: Any) -> str:
    """Where conversations are learned."""
    found = isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]
    return "; conversations are learned by task.type causal-lm, with data.messages_column" if found else ""


def counted_notes(key: str, rows: int, counts: Iterable[tuple[int, str]], share: float) -> list[str]:
    """What is said of the rows of a split, where it concerns more than this share of them.

    Args:
        counts: of how many rows, and what.
    """
    return [f"{count} of {rows} rows of {key} {what}" for count, what in counts if count > share * rows]


def notes_of(splits: Mapping[str, tuple[int, Sequence[tuple[int, str]]]], share: float) -> list[str]:
    """What is said of several splits: the key of each, its rows, and the counts; see `counted_notes`."""
    return [note for key, (rows, counts) in splits.items() for note in counted_notes(key, rows, counts, share)]


def rows_cut(encoded: Any) -> int:
    """How many rows a tokenizer has cut; one in Python, not in Rust, does not say."""
    return sum(bool(row.overflowing) for row in encoded.encodings or ())


def without_nan(rows: Dataset) -> Dataset:
    """The rows with None in place of NaN, in columns of numbers and of lists of them."""
    for name, feature in rows.features.items():
        inner = getattr(feature, "feature", feature)  # of a list, what it holds
        if isinstance(inner, Value) and inner.dtype.startswith("float"):
            values = list(rows[name])
            if (made := [_without_nan(value) for value in values]) != values:
                rows = with_column(rows, name, made)
    return rows


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if is_missing(value) else value


def with_column(rows: Dataset, column: str, values: list[Any]) -> Dataset:
    """The rows with a column of plain values, in place of the one of that name if there is one; nothing is copied or
    decoded."""
    made = Dataset.from_dict({column: values})
    table, new = rows.with_format("arrow")[:], made.data.table.column(column)
    if column in table.column_names:
        table = table.set_column(table.column_names.index(column), column, new)
    else:
        table = table.append_column(column, new)
    return Dataset(table, info=DatasetInfo(features=Features({**rows.features, **made.features})))
