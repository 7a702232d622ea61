"""A recipe's rows in three splits; what is not given is cut from train."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset, Image

from glora_search.errors import invalid
from glora_search.files.samples import shown
from glora_search.recipe.data import BbcHeadlines, Files, Hub, Saved
from glora_search.tasks.fingerprints import image_digest, rows_digest
from glora_search.tasks.labels import (
    Labels,
    Target,
    check_case,
    check_classes,
    check_labels,
    counted,
    declared_names,
    in_order,
    labels_of,
    read_targets,
)
from glora_search.tasks.rows import Column, without_nan
from glora_search.tasks.sources import Source, open_source


@dataclass
class Data:
    """Train and validation rows, the label names, and where the test rows are.

    The test rows stay out of reach until `read_test`: training and search are handed this object's two other
    splits only. Up to then nothing but the test targets is looked at, so that a label which no model could have
    learned, or a number that is none, is reported before the work and not after it.

    Attributes:
        train, validation: the rows to learn from and to search on, with the columns that the task reads.
        labels: label names; a label's class is its index. Empty where the task has none.
        unlabelled: further rows, with the columns of the inputs alone; None where the recipe names none.
        beside: columns that are neither inputs nor targets: other ones are no other data.
        columns: all that the train rows have, read or not.
    """

    train: Dataset
    validation: Dataset
    labels: list[str]
    _test: Callable[[], Dataset] = field(repr=False)
    _test_digest: Callable[[], str] = field(repr=False)
    unlabelled: Dataset | None = None
    beside: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    def read_test(self) -> Dataset:
        """Read the test split; call it once, at the end."""
        return self._test()

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """What tells each split from another: of the test split, where it is given, the bytes as they are now."""
        return {**self._learned_from, "test": {"digest": self._test_digest()}}

    @functools.cached_property
    def _learned_from(self) -> dict[str, dict[str, Any]]:
        splits = {"train": self.train, "validation": self.validation, "unlabelled": self.unlabelled}
        return {
            name: {"rows": len(rows), "digest": _digest(rows, self.beside)}
            for name, rows in splits.items()
            if rows is not None
        }


def load_data(
    data: BbcHeadlines | Files | Hub | Saved,
    seed: int,
    *,
    inputs: Sequence[Column],
    targets: Sequence[Column] = (),
    target: Target | None = "label",
    beside: Sequence[Column] = (),
) -> Data:
    """Read a recipe's data.

    Splits that are not given are cut from train with the seed: the test rows first, then the validation rows. Rows of
    equal inputs stay together.

    Args:
        inputs: what the model is given.
        targets: what it has to say.
        target: what the first target holds; None is text.
        beside: what else is read.

    Raises:
        UserError: a file, column or split is missing; a target is not what it has to be; the data cannot be had
            without a network.
    """
    reader = _Reader(open_source(data), inputs, [*targets, *beside], target, needed=targets)
    other = tuple({name for _, name in beside} - {name for _, name in [*inputs, *targets]})
    rng = np.random.default_rng(seed)
    rows = reader.read("train")
    known = counted(reader.labels(rows))
    reader.check_train(rows, known)
    test: Callable[[], Dataset]
    test_digest: Callable[[], str]
    others: list[Dataset] = []
    if getattr(data, "test", None) is None:
        rows, cut = reader.cut(rows, data.test_fraction, rng)
        test, test_digest = lambda: cut, lambda: _digest(cut, other)
        others.append(cut)
    else:
        reader.check("test")
        test, test_digest = lambda: reader.read("test"), lambda: reader.source.digest("test")
        if getattr(data, "unlabelled", None) is not None:
            others.append(reader.rows("test", reader.inputs))
    if getattr(data, "validation", None) is None:
        rows, validation = reader.cut(rows, data.validation_fraction, rng)
    else:
        validation = reader.read("validation")
        check_labels(counted(reader.labels(validation)), known, "data.validation")
    if target is not None and getattr(data, "test", None) is not None:
        check_labels(counted(reader.labels(reader.read("test", targets_only=True))), known, "data.test")
    if data.max_train_rows is not None and len(rows) > data.max_train_rows:
        rows = reader.some(rows, data.max_train_rows, rng)
    unlabelled = None
    if getattr(data, "unlabelled", None) is not None:
        unlabelled = reader.unlabelled([rows, validation, *others])
    columns = tuple(reader.source.columns("train"))
    return Data(rows, validation, in_order(known, reader.declared), test, test_digest, unlabelled, other, columns)


def _digest(rows: Dataset, without: Sequence[str]) -> str:
    return rows_digest(rows.select_columns([name for name in rows.column_names if name not in without]))


class _Reader:
    """Reads the columns of a task, and cuts the rows."""

    def __init__(
        self,
        source: Source,
        inputs: Sequence[Column],
        targets: Sequence[Column],
        target: Target | None,
        needed: Sequence[Column],
    ) -> None:
        self.source, self.used, self.target = source, [*inputs, *targets], target
        self.inputs = [column for _, column in inputs]
        self.key, self.column = targets[0] if target is not None else ("", "")
        self.needed = needed
        self.declared: list[str] = []

    def check(self, split: str, inputs_only: bool = False) -> None:
        """Raise a UserError where a split cannot be read or lacks a column."""
        found = self.source.columns(split)
        for key, name in self.used:
            if name not in found and not (inputs_only and name not in self.inputs):
                raise invalid(
                    key, name, f"a column of {self.source.place(split)}: {shown([_seen(one) for one in found])}"
                )

    def rows(self, split: str, columns: Sequence[str]) -> Dataset:
        """These columns of a split, as they are but for what is missing."""
        rows = without_nan(self.source.read(split, columns))
        self._check_there(split, rows)
        return rows

    def read(self, split: str, targets_only: bool = False) -> Dataset:
        """A split; labels are their names."""
        self.check(split)
        columns = [self.column] if targets_only else [column for _, column in self.used]
        rows = self.rows(split, list(dict.fromkeys(columns)))
        if len(rows) == 0:
            raise invalid(f"data.{split}", "no rows", "rows" + (" that each have a label" if self.column else ""))
        if self.target is None:
            return rows
        if split == "train":
            self.declared = declared_names(rows, self.column)
        shown = functools.partial(self.source.row, split)
        return read_targets(rows, (self.key, self.column), self.target, split=split, shown=shown)

    def _check_there(self, split: str, rows: Dataset) -> None:
        """Refuse a row without its image, without one of its words, or without a text that is to be learned."""
        for key, name in self.used:
            image = isinstance(rows.features.get(name), Image)
            words = self.target == "tags" and name in self.inputs
            needed = self.target is None and (key, name) in self.needed
            if name not in rows.column_names or not (image or words or needed):
                continue
            if not words and rows.data.column(name).null_count == 0:
                continue  # no image is read for this
            lacks = [
                value is None or (isinstance(value, list) and words and None in value)
                for value in undecoded(rows, name)
            ]
            if True in lacks:
                every = "for every word" if words else "in every row"
                row = self.source.row(split, lacks.index(True) + 1)
                raise invalid(key, name, f"a column with a value {every}: {row} has none")

    def check_train(self, rows: Dataset, known: Counter[str]) -> None:
        """Raise a UserError where nothing can be learned from the train rows: of their targets, or of their inputs."""
        if self.target is not None:
            self._check_targets(rows, known)
        if len(set(_keys(rows, self.inputs))) < 2:
            raise invalid(self.used[0][0], "the same in every row", "a column with at least 2 different inputs")

    def _check_targets(self, rows: Dataset, known: Counter[str]) -> None:
        if not self.declared:
            if self.target == "label":
                check_classes(known, self.key)
            check_case(known, self.key)
        kind = "numbers" if self.target == "number" else "labels"
        found = sorted(set(rows[self.column]) if self.target == "number" else known)
        if len(found) < 2:
            raise invalid(self.key, found, f"a column with at least 2 different {kind}")

    def unlabelled(self, known: Sequence[Dataset]) -> Dataset:
        """The unlabelled rows, without those whose inputs are in another split."""
        self.check("unlabelled", inputs_only=True)
        rows = self.rows("unlabelled", self.inputs)
        seen = {key for split in known for key in _keys(split, self.inputs)}
        new = [number for number, key in enumerate(_keys(rows, self.inputs)) if key not in seen]
        if not new:
            raise invalid("data.unlabelled", f"{len(rows)} rows", "rows that are in no other split")
        return rows.select(new)

    def labels(self, rows: Dataset) -> Labels:
        """The labels of each row."""
        return [[]] * len(rows) if self.target in (None, "number") else labels_of(rows, self.column)

    def cut(self, rows: Dataset, fraction: float, rng: np.random.Generator) -> tuple[Dataset, Dataset]:
        """Split rows in ``(kept, cut off)``: equal inputs stay together, and every label keeps a row."""
        known: dict[Hashable, int] = {}
        groups = [known.setdefault(key, len(known)) for key in _keys(rows, self.inputs)]
        size = round(len(known) * fraction)
        cut = np.isin(groups, rng.permutation(len(known))[:size])
        labels = self.labels(rows)
        kept = {name for names, off in zip(labels, cut, strict=True) if not off for name in names}
        rescued = [group for group, names in zip(groups, labels, strict=True) if not kept.issuperset(names)]
        cut &= ~np.isin(groups, rescued)
        if not 0 < cut.sum() < len(rows):
            raise invalid("data", f"{len(rows)} rows", f"enough rows to cut {fraction:.0%} of them off")
        return rows.select(np.flatnonzero(~cut)), rows.select(np.flatnonzero(cut))

    def some(self, rows: Dataset, count: int, rng: np.random.Generator) -> Dataset:
        """A random part of this many rows, with at least one of every label."""
        labels, seen = self.labels(rows), set[str]()
        needed: list[int] = []
        others: list[int] = []
        for row in rng.permutation(len(rows)):
            (others if seen.issuperset(labels[row]) else needed).append(int(row))
            seen.update(labels[row])
        if count < len(needed):
            raise invalid("data.max_train_rows", count, f"at least {len(needed)}, one for every label")
        return rows.select(sorted([*needed, *others][:count]))


def _seen(name: object) -> str:
    """A column's name as a message shows it: in quotes where white space or something invisible is a part of it."""
    text = str(name)
    return text if text.isprintable() and text == text.strip() else repr(text)


def undecoded(rows: Dataset, column: str) -> Iterable[Any]:
    """A column's values; images are in their file's form."""
    image = isinstance(rows.features[column], Image)
    return (rows.cast_column(column, Image(decode=False)) if image else rows)[column]


def _keys(rows: Dataset, columns: Sequence[str]) -> list[Hashable]:
    """For each row what is equal where its inputs are."""
    parts: list[list[Hashable]] = []
    for column in columns:
        if isinstance(rows.features[column], Image):
            parts.append([image_digest(image) for image in undecoded(rows, column)])
        else:
            values = ["" if value is None else value for value in rows[column]]  # as `texts_of` reads what is missing
            parts.append([repr(value) if isinstance(value, (list, dict)) else value for value in values])
    return list(zip(*parts, strict=True))
