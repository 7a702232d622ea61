"""A full disk is recognised, whatever a library makes of it."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from glora_search.errors import UserError
from glora_search.files.disk import full_disk


def caused_by(error, made):
    """An error that another one was made from."""
    made.__cause__ = error
    return made


ENOSPC = OSError(errno.ENOSPC, "No space left on device")
EDQUOT = OSError(errno.EDQUOT, "Disk quota exceeded")
FULL, QUOTA = "the disk is full", "the quota is used up"
ERRORS = {
    "the system's": (ENOSPC, FULL),
    "the system's of a quota": (EDQUOT, QUOTA),
    "a wrapped one": (caused_by(EDQUOT, RuntimeError("could not be saved")), QUOTA),
    "one that was said already": (caused_by(ENOSPC, UserError("search: the storage cannot be used")), FULL),
    "safetensors'": (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), FULL),
    "datasets', with what it needs": (OSError("Not enough disk space. Needed: 2.1 GiB (download: 1 GiB)"), FULL),
    "torch's": (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"), FULL),
    "torch's of a small file": (RuntimeError("basic_ios::clear: iostream error"), FULL),
}


@pytest.mark.parametrize(("error", "reason"), ERRORS.values(), ids=ERRORS.keys())
def test_a_full_disk_is_one_message(tmp_path, error, reason):
    found = full_disk(error, tmp_path / "run")
    assert isinstance(found, UserError)
    for words in (reason, "Make room and give the same command again"):
        assert words in str(found)
    assert ("MB left" in str(found)) == (reason == FULL)
    assert ("Needed: 2.1 GiB" in str(found)) == ("Needed" in str(error))
    assert full_disk(found, Path("elsewhere")) is found


def test_the_folder_is_that_of_the_file_where_it_is_known(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "none" / "a.json"))
    assert str(full_disk(error, Path("run"))).startswith(f"{tmp_path}: the disk is full")


def test_other_errors_are_no_full_disk(tmp_path):
    for error in (OSError(errno.EACCES, "Permission denied"), ValueError("28"), MemoryError()):
        assert full_disk(error, tmp_path) is None
