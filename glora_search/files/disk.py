"""A full disk or quota: recognised in whatever a library makes of it, and said in one message."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from glora_search.errors import UserError

REASONS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up"}
# safetensors and tokenizers pass on the system's words alone; torch says only that it could not write; datasets looks
# beforehand, and says how much it needs.
WORDS = {
    r"no space left on device|not enough (free )?disk space|os error 28\b": errno.ENOSPC,
    r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+|basic_ios::clear": errno.ENOSPC,
    r"disk quota exceeded|os error 122\b": errno.EDQUOT,
}


class FullDiskError(UserError):
    """A disk or a quota is full: nothing is wrong but that."""


def full_disk(error: BaseException, folder: Path) -> FullDiskError | None:
    """The message about a full disk or quota, where that is what an error comes from; else None.

    Args:
        error: with its causes.
        folder: where the work writes.
    """
    causes = list(_causes(error))
    said = next((cause for cause in causes if isinstance(cause, FullDiskError)), None)
    if said is not None:
        return said
    # The system's own error says most, else the innermost one.
    causes.reverse()
    for cause in sorted(causes, key=lambda cause: not isinstance(cause, OSError)):
        code = _code(cause)
        if code is not None:
            where = _place(getattr(cause, "filename", None), folder)
            free = "" if code == errno.EDQUOT else f", with {_megabytes(where)} left"
            how = "Make room and give the same command again: finished work is kept"
            return FullDiskError(f"{where}: {REASONS[code]} ({_reason(cause)}){free}. {how}")
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno in REASONS:
        return error.errno
    return next((code for words, code in WORDS.items() if re.search(words, str(error), re.IGNORECASE)), None)


def _place(file: object, folder: Path) -> Path:
    """The folder of a file that could not be written; where it is not known, the fullest of those that are used."""
    if isinstance(file, (str, os.PathLike)):
        return _existing(Path(file).parent)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    used = [_existing(path) for path in (folder, Path(tempfile.gettempdir()), cache)]
    return min(used, key=lambda path: shutil.disk_usage(path).free)  # the first of several on one disk


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _megabytes(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200]
