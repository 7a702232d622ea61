"""Labels: one contract for what a row's target is called, whichever task reads it.

Names lose outer white space, also what is invisible, and are in Unicode's form NFC. Two names that letter case alone
separates are refused, and so are two that look alike, or two spellings of one number.
The classes are in the order of the base model's head where that has the same names, letter case aside; else in the
order that the data set declares (`datasets.ClassLabel`); else in numeric order; else sorted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal

from datasets import ClassLabel, Dataset

from glora_search.errors import invalid
from glora_search.files.cells import NOT_MARKS, are_marks, text_of
from glora_search.scoring import IGNORED
from glora_search.tasks.rows import Column, with_column

Target = Literal["label", "tags", "labels", "number"]
"""What a row is given: one label, one for each of its words, any number of them, or a number."""
Labels = list[list[str]]
"""For each row the labels that it has."""
SEPARATOR = "|"
"""Between the labels of a row that has several, where they are written as text."""
INVISIBLE = "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
"""Soft hyphen, joiners, marks of direction, byte order mark."""
OUTER = re.compile(rf"^[\s{INVISIBLE}]+|[\s{INVISIBLE}]+$")
"""What is no part of a name."""
WRITTEN_LIST = re.compile(r"""\[\s*(?:['"].*['"])?\s*\]""", re.DOTALL)
"""A list of names as Python or json writes it."""
WRITTEN_NUMBERS = re.compile(r"\[\s*(?:(?:[+-]?\d+\.?\d*|true|false)(?:[,\s]+|(?=\])))+\]", re.IGNORECASE)
"""A list of numbers or marks as Python, numpy, or json writes it; as a single label, it can be an interval."""
QUOTED = re.compile(r"""^(['"])(.+)\1$""", re.DOTALL)
"""A name in quotes."""
FEW = 10
"""So many whole numbers are classes, however few rows each has."""


def clean(name: object) -> str:
    """A label's name as it is known everywhere."""
    return OUTER.sub("", unicodedata.normalize("NFC", text_of(name)))


def folded(name: str) -> str:
    """What is equal for names that letter case alone separates, or quotes around them, or characters that look alike or
    are invisible."""
    visible = QUOTED.sub(r"\2", re.sub(f"[{INVISIBLE}]", "", name))
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())


def labels_of(rows: Dataset, column: str) -> Labels:
    """The labels of each row, of a column that `read_targets` made."""
    return [
        [value] if isinstance(value, str) else [name for name in value if name is not None] for value in rows[column]
    ]


def counted(labels: Labels) -> Counter[str]:
    """How often each label occurs."""
    return Counter(name for names in labels for name in names)


def read_targets(
    rows: Dataset, column: Column, target: Target, *, split: str, shown: Callable[[int], str] = "row {}".format
) -> Dataset:
    """The rows with names of labels, lists of them, or numbers, in place of what a file has.

    The tag -100 is None: it does not count.

    Args:
        column: of the targets, with its key.
        split: for the messages.
        shown: what they call a row, given its number.

    Raises:
        UserError: a row lacks a target, or has one of another kind.
    """
    key, name = column
    classes, values = _classes(rows, name), list(rows[name])
    odd = next((value for value in values if isinstance(value, (dict, bytes))), None)
    if odd is not None:
        raise invalid(key, odd, "a column of names or numbers")
    lists = [WRITTEN_LIST, WRITTEN_NUMBERS] if target == "labels" else [WRITTEN_LIST]
    texts = [value for value in values if isinstance(value, str)]
    written = [value for value in texts if any(pattern.fullmatch(value.strip()) for pattern in lists)]
    if target in ("label", "labels") and written:
        allowed = (
            f"a{SEPARATOR}b for several labels, or lists in json or parquet; this is a list that was written as text"
        )
        raise invalid(key, written[0], allowed)
    if target == "number":
        values = values if classes is None else [_named(value, classes) for value in values]
        made: list[Any] = [_number_in(value) for value in values]
    elif target == "labels":
        items = [_items(value) for value in values]
        if split == "train" and classes is None and are_marks([own for own in items if own is not None]):
            raise invalid(key, values[0], NOT_MARKS)
        made = [None if own is None else _several(own, classes) for own in items]
    else:
        made = [_named(value, classes) for value in values]
        several = next((value for value, names in zip(values, made, strict=True) if isinstance(names, list)), None)
        if target == "label" and several is not None:
            allowed = "a column with one label in each row; rows with several are learned by task.type multi-label"
            raise invalid(key, several, allowed)
    for row, found in enumerate(made, 1):
        if found in (None, "") or (isinstance(found, list) and "" in found):
            if target == "number":
                raise invalid(f"data.{split}", values[row - 1], f"a number as every row's target; this is {shown(row)}")
            raise invalid(f"data.{split}", f"no label in {shown(row)}", "rows that each have a label")
    return rows if made == values else with_column(rows, name, made)


def declared_names(rows: Dataset, column: str) -> list[str]:
    """The names of a column's classes in their order, where the data set declares them."""
    classes = _classes(rows, column)
    return [] if classes is None else [clean(name) for name in classes.names]


def check_labels(found: Counter[str], known: Counter[str], key: str) -> None:
    """Refuse rows with a label that train has not.

    Args:
        found: the rows' labels.
        known: train's.
        key: the split, for the message.

    Raises:
        UserError: names the label, and those that train has.
    """
    unknown = sorted(found.keys() - known.keys())
    if unknown:
        check_case(found + known, key)
        raise invalid(key, f"label {unknown[0]!r}", f"labels that train has: {', '.join(in_order(known))}")


def check_case(found: Counter[str], key: str) -> None:
    """Refuse labels that letter case alone separates, or that look alike, or are the same number.

    Raises:
        UserError: names them, with how often each occurs.
    """
    alike: dict[str | Fraction, list[str]] = {}
    numbers = all(_number(name) is not None for name in found)
    for name in sorted(found):
        alike.setdefault(Fraction(name) if numbers else folded(name), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            counts = ", ".join(f"{name} ({found[name]} times)" for name in names)
            by_case = len({unicodedata.normalize("NFC", name.casefold()) for name in names}) == 1
            why = "letter case alone separates these" if by_case else "these look alike"
            raise invalid(key, counts, f"one spelling of a label: {'these are one number' if numbers else why}")


def check_classes(found: Counter[str], key: str) -> None:
    """Refuse labels that are no classes: numbers on a scale, or several labels in one.

    Raises:
        UserError: names the task that learns them.
    """
    numbers = {name: number for name in found if (number := _number(name)) is not None}
    broken = [name for name, number in numbers.items() if not number.is_integer()]
    nan = next((name for name in found if name.lower() == "nan"), None)
    if nan is not None and 0 < len(numbers) == len(found) - 1:
        allowed = "labels that are all numbers; this is how pandas writes a missing one: remove these rows"
        raise invalid(key, f"{nan} ({found[nan]} times)", allowed)
    if len(numbers) == len(found) and (broken or len(found) > max(FEW, found.total() / 2)):
        shown = f"numbers such as {(broken or list(numbers))[0]}, {len(found)} different ones in {found.total()} rows"
        raise invalid(key, shown, "names of classes; numbers on a scale are learned by task.type text-regression")
    parts = Counter(part for name in found for part in {clean(part) for part in name.split(SEPARATOR)})
    joined = [name for name in found if SEPARATOR in name and any(parts[clean(p)] > 1 for p in name.split(SEPARATOR))]
    if joined:
        allowed = f"one label in each row; labels separated by {SEPARATOR} are learned by task.type multi-label"
        raise invalid(key, joined[0], allowed)


def in_order(found: Collection[str], declared: Sequence[str] = ()) -> list[str]:
    """Labels in the order that the data set declares, else in numeric order, else sorted."""
    known = [name for name in dict.fromkeys(declared) if name in found]
    if len(known) == len(found):
        return known
    numbers = {name: _number(name) for name in found}
    if None not in numbers.values():
        return sorted(found, key=lambda name: (numbers[name], name))
    return sorted(found)


def in_order_of(head: Iterable[str], found: Collection[str]) -> list[str] | None:
    """Labels in the order of a head that has the same names, letter case aside; None where it has others."""
    spelt = {folded(name): name for name in found}
    names = [folded(clean(name)) for name in head]
    return [spelt[name] for name in names] if sorted(names) == sorted(spelt) else None


def _classes(rows: Dataset, column: str) -> ClassLabel | None:
    feature = rows.features[column]
    inner = getattr(feature, "feature", feature)  # of a list, what it holds
    return inner if isinstance(inner, ClassLabel) else None


def _named(value: Any, classes: ClassLabel | None) -> Any:
    if isinstance(value, list):
        return [None if item in (IGNORED, str(IGNORED)) else _named(item, classes) for item in value]
    if value is None or (classes is not None and value < 0):
        return ""
    return clean(value if classes is None else classes.int2str(int(value)))


def _items(value: Any) -> list[Any] | None:
    """What a row has several of."""
    items = value.split(SEPARATOR) if isinstance(value, str) else value
    return items if isinstance(items, list) or items is None else [items]


def _several(items: list[Any], classes: ClassLabel | None) -> list[str]:
    names = [_named(item, classes) for item in items]
    return list(dict.fromkeys(name for name in names if name))


def _number_in(value: Any) -> float | None:
    return None if value is None else _number(clean(value))


def _number(text: str) -> float | None:
    try:
        number = float("" if "_" in text else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
