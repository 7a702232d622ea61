"""A race of real trainings on one data set: what its finalists share, how each begins, and what the race leaves."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from datasets import Dataset
from filelock import FileLock, Timeout
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from glora_search.finals.finalists import Finalist, finalists
from glora_search.finals.race import Result, race
from glora_search.finals.rungs import Standing, race_cost, whole
from glora_search.finals.training import best_checkpoint, finalist_args, standing, steps_trained, train_to
from glora_search.progress import Bar, say, track
from glora_search.recipe.schema import Finals
from glora_search.scoring import Scoring
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.training.loop import steps_for
from glora_search.training.uniform import Uniform, uniform_methods

WAIT = 0.5
"""Seconds between two looks at trainings that other processes are at."""
Subnet = tuple[Genome, int]
"""A genome, and its parameters."""


@dataclass
class Contest:
    """What the trainings of one race share.

    Attributes:
        space: the bound space.
        scoring: of the task.
        train, validation: encoded rows.
        taught: what taught finalists learn from, see `Teacher.teach`; None is no teacher.
        args: of every training, with what `EVALUATED` sets.
        folder: gets a folder of checkpoints for each finalist; what is there is not trained again.
        settings: the section of a recipe.
        max_params: the budget.
        base: a base model as it is before any training; asked for once a training.
        inherit: a finalist that inherits, on a base model.
        made: told of every model that is about to be trained.
        lr_factors: see `PathTrainer`.
        task_type, modules_to_save: as in peft.
        trained, seconds: the steps that this process has trained, and their time.
    """

    space: BoundSpace
    scoring: Scoring
    train: Dataset
    validation: Dataset
    taught: Dataset | None
    args: TrainingArguments
    folder: Path
    settings: Finals
    max_params: int | None
    base: Callable[[], Any]
    inherit: Callable[[Finalist, Any], PeftModel]
    lr_factors: Mapping[str, float] | None
    task_type: str | None
    modules_to_save: Sequence[str]
    made: Callable[[PeftModel], None] = lambda model: None
    trained: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole training."""
        return whole(steps_for(self.args, len(self.train)))

    def field(self, subnets: Sequence[Subnet]) -> list[Finalist]:
        """Who competes: these subnets, and the uniform methods within the budget."""
        methods = uniform_methods(self.space, self.max_params, self.settings.methods)
        return finalists(subnets, methods, rates=self.settings.rates, teacher=self.taught is not None)

    def race(self, competing: Sequence[Finalist], study: optuna.Study | None = None) -> Result:
        """Train the field, rung by rung; with other processes that do the same, each trains some of it."""
        planned = race_cost(len(competing), 2 if self.taught is not None else 1)
        say(f"finals: {len(competing)} finalists, about {planned:.1f} whole trainings of {self.steps} steps", "dim")
        with track("finals", round(planned * self.steps)) as bar:
            return race(competing, lambda some, step: self._train_to(some, step, bar), self.steps, study=study)

    def home(self, one: Finalist) -> Path:
        """A finalist's own folder."""
        return self.folder / one.slug

    def best(self, one: Finalist, reached: Standing) -> Path:
        """The adapter folder of a finalist's best checkpoint."""
        return best_checkpoint(self._checkpoints(one), reached.best_step)

    def table(self, competing: Sequence[Finalist], result: Result) -> list[dict[str, Any]]:
        """A row for each finalist, those trained longest first, best first."""
        rows = [
            {
                "name": one.name,
                "params": one.params,
                "steps": reached.step,
                "best_step": reached.best_step,
                "validation": reached.metric,
                "validation_loss": reached.loss,
            }
            for one in competing
            for reached in [result.standings[one.name]]
        ]
        return sorted(rows, key=lambda row: (-row["steps"], row["validation_loss"]))

    def _checkpoints(self, one: Finalist) -> Path:
        return self.home(one) / "checkpoints"

    def _fresh(self, one: Finalist) -> PeftModel:
        """A finalist as it is at its beginning."""
        set_seed(self.args.seed)
        base = self.base()
        if isinstance(one.origin, Uniform):
            model = get_peft_model(base, one.origin.config(self.task_type, self.modules_to_save))
        else:
            model = self.inherit(one, base)
        self.made(model)
        return model

    def _train_to(self, some: Sequence[Finalist], step: int, bar: Bar) -> dict[str, Standing]:
        """Train finalists on to a step; one that another process is at is waited for."""
        reached, left = dict[str, Standing](), list(some)
        while left:
            for one in left:
                with contextlib.suppress(FileNotFoundError):  # the process that trains it removes old checkpoints
                    found = standing(self._checkpoints(one), self.scoring, step)
                    if found is not None:
                        reached[one.name] = found
                        continue
                with _claimed(self.home(one)) as ours:
                    if ours:
                        reached[one.name] = self._train_one(one, step, bar)
            waiting = [one for one in left if one.name not in reached]
            if len(waiting) == len(left):
                time.sleep(WAIT)
            left = waiting
        return reached

    def _train_one(self, one: Finalist, step: int, bar: Bar) -> Standing:
        own = one.origin.lr_factors if isinstance(one.origin, Uniform) else {}
        folder, started = self._checkpoints(one), time.perf_counter()
        args = finalist_args(self.args, folder, rate=one.rate, steps=self.steps)
        before = steps_trained(folder)
        train_to(
            step,
            lambda: self._fresh(one),
            self.scoring,
            self.taught if one.taught and self.taught is not None else self.train,
            self.validation,
            args,
            progress=bar,
            lr_factors={**own, **(self.lr_factors or {})},
            teacher_share=self.settings.teacher_share,
        )
        if before < step:
            self.trained += step - before
            self.seconds += time.perf_counter() - started
        found = standing(folder, self.scoring, step)
        assert found is not None
        return found


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether a finalist is this process's to train in this block; the kernel gives it back when the process dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def finite(result: Result, name: str | None) -> bool:
    """Whether a finalist has a validation loss."""
    return name is not None and math.isfinite(result.standings[name].loss)
