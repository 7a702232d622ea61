"""Columns of rows: reading one as text, and putting one in."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetInfo, Features

from glora_search.errors import invalid

Column = tuple[str, str]
"""The key of a recipe that names a column, and the column."""


def texts_of(rows: Dataset, column: str) -> list[str]:
    """A column as text; what is missing is empty.

    Raises:
        UserError: it holds lists, mappings or bytes.
    """
    values = list(rows[column])
    odd = next((value for value in values if isinstance(value, (list, dict, bytes))), None)
    if odd is not None:
        raise invalid("data", f"column {column}", f"a column of text, not of {odd!r}")
    return ["" if value is None else str(value) for value in values]


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
