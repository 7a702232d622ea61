"""The csv of an experiment: what is finished is appended at once, so that a kill loses nothing."""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from glora_search.files.claims import claimed


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file; none where it is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Append rows in one write, the header before the first.

    Args:
        columns: of the file; None is those of the first row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns or list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def fill(
    table: Path,
    names: Sequence[str],
    keys: Iterable[tuple[str, ...]],
    measured: Callable[[tuple[str, ...]], dict[str, Any]],
    cache: Path,
    minutes: float,
) -> None:
    """Append the rows that are missing, beside other processes that do the same.

    Args:
        names: of the columns that tell a row, in the order of a key.
        measured: key -> the row's other columns.
        cache: gets the locks.
        minutes: after these, nothing is begun.
    """
    started = time.monotonic()
    for key in keys:
        if time.monotonic() - started > 60 * minutes:
            return
        with claimed(cache / "claims" / "-".join(key).replace("+", "-")) as mine:
            if not mine or key in {tuple(row[name] for name in names) for row in read_rows(table)}:
                continue
            begun, row = time.perf_counter(), {**dict(zip(names, key, strict=True)), **measured(key)}
            row["seconds"] = round(time.perf_counter() - begun, 1)
            with FileLock(cache / "table.lock"):
                append_rows(table, [row])
            print(*row.values(), flush=True)


def parser_of(description: str | None, name: str) -> argparse.ArgumentParser:
    """The options of an experiment that fills one csv: what to do, the data, and where csv and locks are.

    Args:
        name: of the folders with its results and its cache.
    """
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=here.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=here / "results" / name)
    parser.add_argument("--cache", type=Path, default=here.parent / "runs" / name)
    return parser
