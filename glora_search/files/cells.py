"""What single values of data mean, whichever file they are from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

NOT_MARKS = "lists of the names of a row's labels, not a 0 or 1 for each label"
"""What several labels are."""
MARKS = {"0", "1", "0.0", "1.0", "false", "true"}
EXACT = 2.0**53
"""Up to here, a float is the whole number that was written."""


def is_missing(value: object) -> bool:
    """Whether there is no value; pandas and ``json.dumps`` write NaN for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: object) -> str:
    """A value as a text: what is missing is empty, true and false are as json writes them, and a whole number has no
    fraction, which a column of numbers gives it where another row has one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return "" if is_missing(value) else str(value)


def are_marks(rows: Sequence[Sequence[Any]]) -> bool:
    """Whether each row has a 0 or 1 for each label: as names, nearly every row would have both."""
    as_many = len({len(row) for row in rows}) == 1 and len(rows[0]) > 1
    return as_many and all(str(item).strip().lower() in MARKS for row in rows for item in row)
