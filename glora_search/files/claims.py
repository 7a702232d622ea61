"""Work that processes share: each piece is done by one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether a piece of work is this process's in this block; the kernel gives it back when the process dies.

    Args:
        lock: the piece's own file; it is made, with its folder.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
