"""How long a stage's work takes, the calls included that were killed on the way."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from glora_search.errors import UserError
from glora_search.files.text import read_json, write_json

FILE = "seconds.json"
"""In a stage's folder while it is not done: the seconds that were spent on it."""
BEAT = 5.0
"""Seconds after which they are noted again: a kill loses no more."""


@contextmanager
def clocked(folder: Path) -> Iterator[Callable[[], float]]:
    """Note the seconds in a folder while the work lasts; gives what returns those of all calls so far."""
    before, started = _noted(folder), time.perf_counter()
    stopped = threading.Event()

    def seconds() -> float:
        return before + time.perf_counter() - started

    def beat() -> None:
        while not stopped.wait(BEAT):
            _note(folder, seconds())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stopped.set()
        thread.join()
        _note(folder, seconds())


def go_on_from(folder: Path, seconds: float) -> None:
    """Let a stage that was done go on: its seconds count."""
    _note(folder, seconds)


def forget_clock(folder: Path) -> None:
    """The stage is done, and has noted its seconds."""
    (folder / FILE).unlink(missing_ok=True)


def _note(folder: Path, seconds: float) -> None:
    if folder.is_dir():
        with contextlib.suppress(OSError):  # a full disk is the work's to report
            write_json(folder / FILE, {"seconds": round(seconds, 1)})


def _noted(folder: Path) -> float:
    with contextlib.suppress(OSError, UserError, KeyError, TypeError, ValueError):  # a damaged one counts nothing
        return float(read_json(folder / FILE)["seconds"])
    return 0.0
