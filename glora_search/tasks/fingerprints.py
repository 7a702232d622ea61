"""Short names of contents: rows, files and folders that differ have other ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Image


def rows_digest(rows: Dataset) -> str:
    """The name of rows: their columns, values and order; of images, the bytes."""
    images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    for column in images:
        rows = rows.cast_column(column, Image(decode=False))
    digest = hashlib.sha256()
    for batch in rows.with_format(None).iter(1000):
        for column in images:
            batch[column] = [image_digest(image) for image in batch[column]]
        # Not UTF-8: a json file can hold half of a surrogate pair.
        digest.update(json.dumps(batch, default=repr, sort_keys=True).encode("ascii"))
    return digest.hexdigest()


def image_digest(image: Mapping[str, Any] | None) -> str | None:
    """The name of an image that is not decoded; None where there is none."""
    if image is None:
        return None
    content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """The name of a file's bytes, or of all files in a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for inner in sorted(path.rglob("*")):
        if inner.is_file():
            digest.update(f"{inner.relative_to(path)} {file_digest(inner)}\n".encode())
    return digest.hexdigest()


def state_digest(files: Sequence[Path]) -> str:
    """The name of files as they are now, told without reading them: any change gives another one."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}\n".encode())
    return digest.hexdigest()
