"""The first rows of a data set, read long before the whole of it: what its columns are called, and what they hold."""

from __future__ import annotations

import csv
import functools
import glob
import itertools
import json
import re
from collections.abc import Mapping, Sequence
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
ALLOWED = "a csv, tsv, json, jsonl or parquet file, a folder of such files, of images by class, or of save_to_disk"
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""The name of a data set on the hub, where no such file or folder exists."""
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff")
OTHER_SPLITS = {"validation": ("validation", "valid", "dev"), "test": ("test",)}
"""Split of a recipe -> what data sets call it."""


@dataclass(frozen=True)
class Sample:
    """A data set.

    Attributes:
        source: keys of a recipe's data section that say where it is.
        columns: names of the columns.
        rows: the first rows, column -> value; classes are names. Of images, there are none.
        images: the columns with images.
        splits: validation and test -> their names in a data set whose splits have names, and their first rows.
    """

    source: dict[str, Any]
    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    splits: dict[str, tuple[str, list[dict[str, Any]]]] = field(default_factory=dict)


def sample(option: str, path: str, config: str | None = None) -> Sample:
    """Look at a data set.

    Args:
        option: of the command line that names it, for the message.
        path: of a file or a folder, or a name on the hub.
        config: the configuration of a data set on the hub that has several.

    Raises:
        UserError: it is not there, or of no format that a recipe reads.
    """
    place = Path(path).expanduser()
    path = str(place) if path.startswith("~") else path
    hosted = not place.exists() and HUB.fullmatch(path) is not None and place.suffix.lower() not in FORMATS
    if config is not None and not hosted:
        raise invalid("--config", config, f"nothing, since {path} is no data set on the hub")
    if hosted or _is_data_folder(place):
        return _by_load_dataset(option, path, config)
    if not place.exists():
        raise invalid(option, path, f"{ALLOWED} that exists, or a data set on the hub, as owner/name")
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


def check_folder(key: str, name: str) -> None:
    """Refuse a folder whose path is a pattern to ``datasets.load_dataset``, which would read other folders, or none.

    Args:
        key: what names it, for the message.
        name: of a data set; one on the hub is no folder.
    """
    folder = str(Path(name).resolve())
    if Path(folder).is_dir() and glob.glob(folder) != [folder]:
        allowed = "a folder without *, ? and [ in its path, which datasets.load_dataset reads as a pattern; rename it"
        raise invalid(key, folder, allowed)


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
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(folder)).with_format(None)
    return _of_splits(
        {"source": "saved", "folder": str(folder)}, found if isinstance(found, DatasetDict) else {"train": found}
    )


def _is_data_folder(folder: Path) -> bool:
    """Whether it is a folder of data files, which ``load_dataset`` reads as it reads a data set on the hub."""
    if not folder.is_dir() or _is_saved(folder):
        return False
    endings = {file.suffix.lower() for pattern in ("*", "[!.]*/*") for file in folder.glob(pattern) if file.is_file()}
    return bool(endings & FORMATS.keys()) and not endings & set(IMAGES)


def _by_load_dataset(option: str, name: str, config: str | None) -> Sample:
    from datasets import load_dataset

    check_folder(option, name)
    source = {"source": "hub", "name": name} | ({} if config is None else {"config": config})
    try:
        return _of_splits(source, load_dataset(name, config, streaming=True))
    except Exception as error:  # of the hub, of its client, or of a reader
        kind = "a folder of data files" if Path(name).is_dir() else "a path that exists, or a data set on the hub,"
        allowed = f"{kind} that datasets.load_dataset can load ({' '.join(str(error).split())[:300]})"
        raise invalid(option, name, allowed) from error


def _of_splits(source: dict[str, Any], splits: Mapping[str, Any]) -> Sample:
    """A data set whose splits have names."""
    train = "train" if "train" in splits else next(iter(splits))
    found = source | ({} if train == "train" else {"train": train})
    columns, rows, images = _first_rows(splits[train])
    named = {
        split: next((name for name in names if name in splits and name != train), None)
        for split, names in OTHER_SPLITS.items()
    }
    others = {split: (name, _first_rows(splits[name])[1]) for split, name in named.items() if name is not None}
    return Sample(found, columns, rows, images, others)


def _first_rows(split: Any) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """The columns of a split, its first rows, and the columns with images, which the rows are without."""
    from datasets import Image

    features = split.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    few = itertools.islice(split.remove_columns(images), SAMPLED)
    rows = [{name: _named(features.get(name), value) for name, value in row.items()} for row in few]
    return list(features) or list(dict.fromkeys(name for row in rows for name in row)), rows, images


def _named(feature: Any, value: Any) -> Any:
    """The names of classes, in place of their numbers."""
    inner = getattr(feature, "feature", feature)
    if not hasattr(inner, "int2str") or value is None:
        return value
    if isinstance(value, list):
        return [_named(inner, one) for one in value]
    return inner.int2str(value) if value >= 0 else None  # -1 is no class
