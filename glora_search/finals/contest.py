"""A race of real trainings on one data set: what its finalists share, how each begins, and what the race leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from glora_search.finals.finalists import Finalist, finalists
from glora_search.finals.race import Result, race
from glora_search.finals.rungs import Standing, race_cost, whole
from glora_search.finals.training import best_checkpoint, finalist_args, standing, train_to
from glora_search.progress import Bar, say, track
from glora_search.recipe.schema import Finals
from glora_search.scoring import Scoring
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.training.loop import steps_for
from glora_search.training.uniform import Uniform, uniform_methods

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
        """Train the field, rung by rung."""
        planned = race_cost(len(competing), 2 if self.taught is not None else 1)
        say(f"finals: {len(competing)} finalists, about {planned:.1f} whole trainings of {self.steps} steps", "dim")
        with track("finals", round(planned * self.steps)) as bar:
            return race(competing, lambda one, step: self._train_to(one, step, bar), self.steps, study=study)

    def home(self, one: Finalist) -> Path:
        """A finalist's own folder."""
        return self.folder / one.slug

    def best(self, one: Finalist, reached: Standing) -> Path:
        """The adapter folder of a finalist's best checkpoint."""
        return best_checkpoint(self.home(one) / "checkpoints", reached.best_step)

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

    def _train_to(self, one: Finalist, step: int, bar: Bar) -> Standing:
        own = one.origin.lr_factors if isinstance(one.origin, Uniform) else {}
        rows = self.taught if one.taught and self.taught is not None else self.train
        args = finalist_args(self.args, self.home(one) / "checkpoints", rate=one.rate, steps=self.steps)
        started, before = time.perf_counter(), standing(Path(args.output_dir), self.scoring)
        reached = train_to(
            step,
            self._fresh(one),
            self.scoring,
            rows,
            self.validation,
            args,
            progress=bar,
            lr_factors={**own, **(self.lr_factors or {})},
            teacher_share=self.settings.teacher_share,
        )
        self.trained += reached.step - (before.step if before else 0)
        self.seconds += time.perf_counter() - started
        return reached


def finite(result: Result, name: str | None) -> bool:
    """Whether a finalist has a validation loss."""
    return name is not None and math.isfinite(result.standings[name].loss)
