"""What is said while something is done: messages, and progress bars with a rate and the time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

PIPE_WIDTH = 200
"""The most columns of a table that goes to a file or another program; it takes no more than it needs."""
PLAIN_SECONDS = 60.0
"""Without a terminal a line says so often how far the work is."""

console = Console(emoji=False)


def set_up(target: Console, *, quiet: bool = False, stderr: bool = False) -> None:
    """Look again at where a console prints: the stream, whether it is a terminal, its width, ``NO_COLOR``.

    Texts and paths are printed as they are, also where rich would take a part for an emoji. The object stays the same,
    since the whole package has imported it.
    """
    piped = not (sys.stderr if stderr else sys.stdout).isatty() and "COLUMNS" not in os.environ
    Console.__init__(target, quiet=quiet, stderr=stderr, width=PIPE_WIDTH if piped else None, emoji=False)


def say(text: str, style: str | None = None) -> None:
    """Print one line as it is: no markup, no highlights, no breaks inside of a path."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


class Bar(Protocol):
    """What a stage may do with its bar."""

    def advance(self, steps: int = 1, note: str = "") -> None: ...

    def start_at(self, done: int) -> None: ...


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class _RichBar:
    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._progress.update(self._task, advance=steps, note=note)

    def start_at(self, done: int) -> None:
        self._progress.reset(self._task, completed=done)  # so that the rate is that of this process


class _PlainBar:
    """Lines instead of a bar: one a minute, and one at the end."""

    def __init__(self, description: str, total: int) -> None:
        self._description, self._total, self._done, self._note = description, total, 0, ""
        self._said = time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done, self._note = self._done + steps, note
        if time.monotonic() - self._said >= PLAIN_SECONDS:
            self.show()

    def start_at(self, done: int) -> None:
        self._done = done

    def show(self) -> None:
        """Print how far the work is."""
        self._said = time.monotonic()
        say(f"{self._description}: {self._done}/{self._total}{', ' if self._note else ''}{self._note}")


@contextmanager
def track(description: str, total: int) -> Iterator[Bar]:
    """A progress bar for a block of work of ``total`` steps; where there is no terminal, or no colour, plain lines."""
    if not console.is_terminal or console.no_color:
        bar = _PlainBar(description, total)
        yield bar
        bar.show()
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield _RichBar(progress, description, total)
