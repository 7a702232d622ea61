"""Doing cells: what is in the csv is not done again, and processes that share it never do the same cell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from csv_rows import append_rows, read_rows
from filelock import FileLock
from study_data import recipe_of
from study_methods import fresh
from study_plan import RACES, RUNS, Cell, Study
from study_runs import run_one, teach, tidy
from study_training import fit, settings_of

from glora_search import Recipe
from glora_search.files.claims import claimed
from glora_search.tasks import make_task

KEY = tuple(Cell.__dataclass_fields__)
COLUMNS = (
    *KEY,
    *("rate", "epochs", "metric", "params", "best_epoch", "validation", "validation_loss", "test", "test_loss"),
    *("test_rows", "seconds", "trainings", "winner", "baseline", "baseline_validation_loss", "baseline_test"),
    *("teacher_validation_loss", "threads"),
)
UNFIT = "does not fit"
"""The winner of a cell whose method does not fit its budget, so that it is not tried again."""


@dataclass(frozen=True)
class Desk:
    """Where the study reads and writes.

    Attributes:
        study: its settings.
        data: the folder of the data sets.
        results: the folder of ``study.csv`` and ``genomes.jsonl``.
        cache: the folder of splits, run folders and locks; what is in it can be made again.
    """

    study: Study
    data: Path
    results: Path
    cache: Path

    @property
    def table(self) -> Path:
        """The csv."""
        return self.results / "study.csv"

    def rows(self) -> list[dict[str, str]]:
        """The finished trainings."""
        with self._locked():
            return read_rows(self.table)

    def append(self, row: dict[str, Any], genomes: dict[str, Any] | None = None) -> None:
        """Add a finished training in one write, its genomes before it."""
        with self._locked():
            if genomes is not None:
                key = {name: row[name] for name in KEY}
                with (self.results / "genomes.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps({**key, **genomes}) + "\n")
            append_rows(self.table, [row], COLUMNS)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.results.mkdir(parents=True, exist_ok=True)
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(self.cache / "table.lock"):
            yield


def next_rate(losses: dict[float, float], rates: Sequence[float], extensions: int) -> float | None:
    """The learning rate to train at next; None where the best one lies inside of the range.

    Args:
        losses: rate -> validation loss of what is trained; nan is a training that diverged.
        rates: that are trained in any case, in ascending order and equal ratios.
        extensions: how often the range may grow by one because the best rate lies on its border.
    """
    for rate in rates:
        if not _known(rate, losses):
            return rate
    tried = sorted(losses)
    best = min(tried, key=lambda rate: losses[rate] if math.isfinite(losses[rate]) else math.inf)
    if len(tried) >= len(rates) + extensions or len(rates) < 2 or not math.isfinite(losses[best]):
        return None
    ratio = rates[1] / rates[0]
    beyond = {tried[0]: best / ratio, tried[-1]: best * ratio}.get(best)
    return None if beyond is None else float(f"{beyond:.6g}")


def _known(rate: float, losses: dict[float, float]) -> bool:
    return any(math.isclose(rate, other) for other in losses)


def losses_of(cell: Cell, rows: Sequence[dict[str, str]], epochs: float | None = None) -> dict[float, float]:
    """Rate -> validation loss of a cell's finished trainings.

    Args:
        epochs: of those trainings that count; None is all.
    """
    own = [row for row in rows if all(row[name] == value for name, value in cell.key.items())]
    return {
        float(row["rate"] or 0): float(row["validation_loss"] or "nan")
        for row in own
        if epochs is None or float(row["epochs"] or 0) == epochs
    }


def next_training(cell: Cell, rows: Sequence[dict[str, str]], study: Study) -> tuple[float, float] | None:
    """The learning rate and the epochs to train a cell with next; None where nothing is left to train."""
    whole, rates = study.epochs[cell.rows], study.rates_of(cell.method)
    losses = losses_of(cell, rows, whole)
    rate = next_rate(losses, rates, study.extensions)
    if rate is not None:
        return rate, whole
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if cell.method != "lora" or len(rates) < 2 or not finite:
        return None
    best = min(finite, key=finite.__getitem__)
    for epochs in study.shorter.get(cell.rows, ()):
        for rate in (best, float(f"{best * rates[1] / rates[0]:.6g}")):
            if not _known(rate, losses_of(cell, rows, epochs)):
                return rate, epochs
    return None


def is_done(cell: Cell, rows: Sequence[dict[str, str]], study: Study) -> bool:
    """Whether nothing of a cell is left to train."""
    losses = losses_of(cell, rows)
    if cell.method in RUNS or 0 in losses:
        return bool(losses)
    return next_training(cell, rows, study) is None


def is_ready(cell: Cell, rows: Sequence[dict[str, str]]) -> bool:
    """Whether what a cell builds on is there."""
    return cell.method not in RACES or bool(losses_of(cell.of("ours"), rows))


def do_cell(cell: Cell, desk: Desk, late: Any) -> None:
    """Train what is left of a cell, as long as it is not late."""
    study, shared = desk.study, {**cell.key, "threads": torch.get_num_threads()}
    if cell.method in RUNS:
        found, genomes = run_one(cell, study, desk.data, desk.cache)
        desk.append({**shared, "rate": 0, **found}, genomes)
        tidy(cell, desk.cache)
        return
    task: Any = None
    taught, facts = None, dict[str, Any]()
    while not late():
        wanted = next_training(cell, desk.rows(), study)
        if wanted is None:
            return
        rate, epochs = wanted
        if task is None:
            task = make_task(Recipe.model_validate({**recipe_of(cell, study, desk.data, desk.cache), "space": "glora"}))
            if cell.method == "taught":
                taught, facts = teach(cell, study, task, desk.data, desk.cache)
        settings = settings_of(rate, epochs, study.batch)
        steps = round(-(-len(task.train) // study.batch) * settings["num_train_epochs"])
        start = fresh(cell.method, task, cell.budget, cell.seed, steps, study.batch)
        if start is None:
            desk.append({**shared, "rate": 0, "winner": UNFIT})
            return
        options = {"lr_factors": {"head": study.head, **start.lr_factors}, "after": start.after, "decay": start.decay}
        options |= {"taught": taught, "teacher_share": study.teacher_share, "callbacks": start.callbacks}
        found = fit(start.model, task, settings, cell.seed, **options)
        found["trainings"] = epochs / study.epochs[cell.rows]
        desk.append({**shared, "rate": rate, "params": start.params, **found, **facts})


def work(cells: Sequence[Cell], desk: Desk, minutes: float | None = None) -> str:
    """Do the cells in their order, beside other processes.

    Args:
        minutes: no training begins after so many.

    Returns:
        Why it ended.
    """
    started, failed = time.monotonic(), set[Cell]()

    def late() -> bool:
        return minutes is not None and time.monotonic() - started > 60 * minutes

    while True:
        rows = desk.rows()
        left = [cell for cell in cells if cell not in failed and not is_done(cell, rows, desk.study)]
        for cell in left:
            if late():
                return f"stopped at the limit; {len(left)} cells are left"
            if not is_ready(cell, rows):
                continue
            with claimed(desk.cache / "claims" / cell.name) as mine:
                if not mine or is_done(cell, desk.rows(), desk.study):
                    continue
                print(f"{time.strftime('%H:%M')} {cell.name}, {len(left)} cells are left", flush=True)
                try:
                    do_cell(cell, desk, late)
                except Exception as error:  # one that cannot be done does not end a night's work
                    failed.add(cell)
                    print(f"failed: {cell.name}: {type(error).__name__}: {error}", flush=True)
            break  # the first that is left may be another one now
        else:
            what = f"; {len(failed)} have failed: {', '.join(cell.name for cell in failed)}" if failed else ""
            return f"nothing is left to do here; {len(left)} cells wait for another process{what}"
