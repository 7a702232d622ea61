"""The first rows of a data set, read long before the whole of it: what its columns are called, and what they hold."""

from __future__ import annotations

import csv
import functools
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glora_search.errors import invalid
from glora_search.files.tables import read_header

SAMPLED = 50
"""Rows that are looked at."""
FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
"""How a file's name ends -> the source of a recipe that reads it; any other is read as csv."""
SHOWN = 20
"""Columns that a message shows."""
LONGEST_LINE = 1 << 24
ALLOWED = "a csv, tsv, json, jsonl or parquet file, a folder of images by class, or a folder of save_to_disk"


@dataclass(frozen=True)
class Sample:
    """A data set.

    Attributes:
        source: keys of a recipe's data section that say where it is.
        columns: names of the columns.
        rows: the first rows, column -> value; classes are names. Of images, there are none.
        images: the columns with images.
    """

    source: dict[str, Any]
    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def sample(option: str, path: str) -> Sample:
    """Look at a data set.

    Args:
        option: of the command line that names it, for the message.

    Raises:
        UserError: it is not there, or of no format that a recipe reads.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise invalid(option, path, f"{ALLOWED} that exists")
    try:
        if place.is_dir():
            return _saved(place) if _is_saved(place) else _images(place)
        source = FORMATS.get(place.suffix.lower(), "csv")
        tabs = {"separator": "\t"} if place.suffix.lower() == ".tsv" else {}
        columns, rows = _csv(place, **tabs) if source == "csv" else {"json": _json, "parquet": _parquet}[source](place)
    except (OSError, ValueError, RecursionError) as error:
        wanted = f"a {FORMATS.get(place.suffix.lower(), 'csv')} file" if place.is_file() else ALLOWED
        header = " with a header line" if wanted == "a csv file" else ""
        raise invalid(option, path, f"{wanted}{header} ({str(error).splitlines()[0][:200]})") from None
    return Sample({"source": source, "train": path, **tabs}, columns, rows)


def shown(columns: Sequence[object]) -> str:
    """The names of columns as a message shows them: no more of them, and no more of each, than can be read."""
    names = [name if len(name) <= 40 else f"{name[:40]}..." for name in map(str, columns[:SHOWN])]
    return ", ".join(names) + (f", and {len(columns) - SHOWN} more" if len(columns) > SHOWN else "")


def _csv(path: Path, separator: str | None = None) -> tuple[list[str], list[dict[str, Any]]]:
    separator, header = read_header(path, separator)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = filter(None, csv.reader(file, delimiter=separator))  # without empty lines, as pandas reads it
        return header, [dict(zip(header, row, strict=False)) for row in itertools.islice(rows, 1, SAMPLED + 1)]


def _json(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        lines = filter(str.strip, iter(functools.partial(file.readline, LONGEST_LINE), ""))
        first = next(lines, "")
        if first.lstrip().startswith("["):
            file.seek(0)
            rows = json.load(file)[:SAMPLED]
        else:
            rows = [json.loads(line) for line in itertools.islice(itertools.chain([first], lines), SAMPLED) if line]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a row is no object")
    return list(dict.fromkeys(name for row in rows for name in row)), rows


def _parquet(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        rows = next(file.iter_batches(batch_size=SAMPLED)).to_pylist() if file.metadata.num_rows else []
        return list(file.schema_arrow.names), rows


def _images(folder: Path) -> Sample:
    if not any(file.is_file() for file in folder.glob("*/*")):
        raise ValueError("it has no folder with files")
    return Sample({"source": "imagefolder", "train": str(folder)}, ["image", "label"], images=["image"])


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved(folder: Path) -> Sample:
    from datasets import DatasetDict, Image, load_from_disk

    found = load_from_disk(str(folder))
    splits: dict[str, Any] = dict(found) if isinstance(found, DatasetDict) else {"train": found}
    train = "train" if "train" in splits else next(iter(splits))
    source = {"source": "saved", "folder": str(folder)} | ({} if train == "train" else {"train": train})
    for split, names in {"validation": ("validation", "valid", "dev"), "test": ("test",)}.items():
        if found_split := next((name for name in names if name in splits and name != train), None):
            source[split] = found_split
    rows = splits[train]
    images = [name for name, feature in rows.features.items() if isinstance(feature, Image)]
    few = rows.select(range(min(SAMPLED, len(rows)))).remove_columns(images)
    named = [{name: _named(few.features[name], value) for name, value in row.items()} for row in few]
    return Sample(source, list(rows.column_names), named, images)


def _named(feature: Any, value: Any) -> Any:
    """The names of classes, in place of their numbers."""
    inner = getattr(feature, "feature", feature)
    if not hasattr(inner, "int2str") or value is None:
        return value
    if isinstance(value, list):
        return [_named(inner, one) for one in value]
    return inner.int2str(value) if value >= 0 else None  # -1 is no class
