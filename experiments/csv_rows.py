"""The csv of an experiment: what is finished is appended at once, so that a kill loses nothing."""

from __future__ import annotations

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
