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

BEAT = 5.0
"""Seconds after which they are noted again: a kill loses no more."""


@contextmanager
def clocked(folder: Path) -> Iterator[Callable[[], float]]:
    """Note the seconds beside a stage's folder while the work lasts; gives what returns those of all calls so far."""
    before, started = _noted(folder), time.perf_counter()
    stopped = threading.Event()

    def seconds() -> float:
        return before + time.perf_counter() - started

    def beat() -> None:
        while not stopped.wait(BEAT):
            go_on_from(folder, seconds())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield seconds
    finally:
        stopped.set()
        thread.join()
        if seconds() - before >= BEAT:  # what is refused at once leaves nothing behind
            go_on_from(folder, seconds())


def go_on_from(folder: Path, seconds: float) -> None:
    """Note what was spent on a stage that is not done."""
    with contextlib.suppress(OSError):  # a full disk is the work's to report
        write_json(_file(folder), {"seconds": round(seconds, 1)})


def forget_clock(folder: Path) -> None:
    """The stage is done, and has noted its seconds; or it begins anew."""
    _file(folder).unlink(missing_ok=True)


def _file(folder: Path) -> Path:
    """Not in the folder, which the work may remove."""
    return folder.with_name(f".{folder.name}.seconds.json")


def _noted(folder: Path) -> float:
    with contextlib.suppress(OSError, UserError, KeyError, TypeError, ValueError):  # a damaged note counts nothing
        return float(read_json(_file(folder))["seconds"])
    return 0.0
