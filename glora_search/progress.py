"""Progress bars with a rate and the time left, for everything that takes longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

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
from transformers import TrainerCallback

console = Console()


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


@contextmanager
def track(description: str, total: int) -> Iterator[Bar]:
    """A progress bar for a block of work of ``total`` steps."""
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


class TrainingProgress(TrainerCallback):
    """Shows a Trainer's steps on a bar, with the latest loss."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed training starts where it was."""
        self.bar.start_at(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the loss for the bar."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self.bar.advance(1, self.note)
