"""The study's splits: each seed draws its own train and validation rows; what is left becomes further test rows.

No text is in two splits of a seed, whatever its letter case and white space; of pairs, in neither order.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from study_plan import Cell, Study

from glora_search.errors import UserError
from glora_search.tasks.sources import Headlines

SPLITS = ("train", "validation", "test")
MADE = Path("runs/data")
"""Where `prepare_texts` writes its sets; the rest is in the folder of the data sets."""
COLUMNS = {"stsb": {"text_pair_column": "text_pair", "label_column": "score"}}
"""What a recipe says of a data set's columns where they are not text and label."""


def recipe_of(cell: Cell, study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The sections of a recipe that every method of a cell has in common; its splits are written where they are not.

    Args:
        data: the folder of the data sets.
        cache: where splits are written.
    """
    folder = write_splits(cell, study, data, cache / "splits")
    regression = cell.data == "stsb"
    task = {"model": study.encoders[cell.encoder].model, "max_length": study.max_length}
    return {
        "name": "study",
        "seed": cell.seed,
        "task": {**task, "type": "text-regression" if regression else "text-classification"},
        "data": {
            "source": "csv",
            **{split: str(folder / f"{split}.csv") for split in SPLITS},
            **COLUMNS.get(cell.data, {}),
        },
    }


def write_splits(cell: Cell, study: Study, data: Path, cache: Path) -> Path:
    """The folder with a cell's three splits; it is whole, or not there."""
    sizes = (cell.rows, study.validation_rows, study.test_rows)
    folder = cache / "-".join([cell.data, *map(str, sizes), str(cell.seed)])
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / ".lock"):
        if not folder.is_dir():
            shutil.rmtree(making := folder.with_suffix(".making"), ignore_errors=True)
            making.mkdir()
            regression = cell.data == "stsb"
            splits = split_rows(*read(cell.data, data), *sizes, seed=cell.seed, labelled=not regression)
            for name, rows in zip(SPLITS, splits, strict=True):
                rows.to_csv(making / f"{name}.csv", index=False)
            making.rename(folder)
    return folder


def read(name: str, data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A data set's rows to draw from, and its own test rows, all cells as text."""
    if name == "bbc-headlines":
        headlines: Any = Headlines().read("train", ["text", "label"]).to_pandas()
        return headlines, headlines.iloc[:0]
    folder = data / name if (data / name).is_dir() else MADE / name
    files = {split: folder / f"{split}.csv" for split in SPLITS}
    frames = {
        split: pd.read_csv(path, dtype=str, keep_default_na=False) for split, path in files.items() if path.is_file()
    }
    if not {"train", "test"} <= frames.keys():
        raise UserError(f"--data: got {str(data)!r}; allowed: a folder with {name}/train.csv and {name}/test.csv")
    return pd.concat([frames[split] for split in ("train", "validation") if split in frames]), frames["test"]


def split_rows(
    pool: pd.DataFrame,
    test: pd.DataFrame,
    train_rows: int,
    validation_rows: int,
    test_rows: int,
    *,
    seed: int,
    labelled: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Train, validation and test rows of a seed.

    Args:
        pool: what is drawn from; equal texts count once, and what the test rows have is not drawn.
        test: the data set's own test rows, which come before what is left of the pool.
        train_rows: at least one of every label of the pool is among them.
        validation_rows: so many.
        test_rows: at most: so many are drawn of a larger test, and what is left of the pool fills a smaller one up.
        labelled: whether the last column is a label, and not a number.
    """
    rng = np.random.default_rng(seed)
    pool = pool[~keys(pool).duplicated().to_numpy()]
    pool = pool[~keys(pool).isin(keys(test)).to_numpy()].sample(frac=1, random_state=rng)
    if labelled:
        first = ~pool["label"].duplicated()
        pool = pd.concat([pool[first], pool[~first]])  # one of every label, then the rest
        if first.sum() > train_rows or not set(test["label"]) <= set(pool["label"]):
            raise UserError(f"{first.sum()} labels do not fit {train_rows} rows, or a test row has another one")
    train, validation = pool[:train_rows], pool[train_rows : train_rows + validation_rows]
    if len(validation) < validation_rows:
        raise UserError(f"{len(pool)} rows are too few for {train_rows} train and {validation_rows} validation rows")
    if len(test) > test_rows:  # its file may be in the order of the labels
        test = test.sample(test_rows, random_state=rng)
    rest = pool[train_rows + validation_rows :]
    return train, validation, pd.concat([test, rest])[:test_rows]


def rows_left(name: str, data: Path, splits: dict[str, str], *, seed: int) -> pd.DataFrame:
    """The rows that a data set has left: those whose texts are in none of a seed's splits, nor among its test rows.

    Args:
        splits: split -> its csv file.
    """
    pool, test = read(name, data)
    files = [pd.read_csv(path, dtype=str, keep_default_na=False) for path in splits.values()]
    taken = pd.concat([keys(rows) for rows in (*files, test)])
    return pool[~keys(pool).isin(taken).to_numpy()].sample(frac=1, random_state=seed)


def keys(rows: pd.DataFrame) -> pd.Series:
    """What is equal where the texts are."""
    texts = [rows[name] for name in ("text", "text_pair") if name in rows]
    plain = [[" ".join(text.casefold().split()) for text in column] for column in texts]
    return pd.Series(["\n".join(sorted(row)) for row in zip(*plain, strict=True)], index=rows.index, dtype=object)
