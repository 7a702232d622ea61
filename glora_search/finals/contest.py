"""The finals on one data set: who races when, what the trainings share, how each begins, and how it ended."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments, set_seed

from glora_search.errors import invalid
from glora_search.files.claims import claimed
from glora_search.finals.finalists import (
    Finalist,
    Subnet,
    best_rates,
    further_rate,
    rate_of_lora,
    subnet_finalists,
    taught_twins,
    uniform_finalists,
)
from glora_search.finals.lessons import POOR, Lesson, Peers
from glora_search.finals.race import Result, race
from glora_search.finals.rungs import SHARES, Standing, best_first, race_cost, whole
from glora_search.finals.training import best_checkpoint, finalist_args, standing, steps_trained, train_to
from glora_search.progress import Bar, say, track
from glora_search.recipe.schema import Finals
from glora_search.scoring import Scoring
from glora_search.space.bound import BoundSpace
from glora_search.training.loop import steps_for
from glora_search.training.uniform import Uniform, uniform_methods

FURTHER = 2
"""Learning rates of LoRA that join the race, at most."""
PEERS = "peers"
"""The folder of what finalists teach."""
WAIT = 0.5
"""Seconds between two looks at what other processes are at."""
NOBODY_RACES = "with finals, a budget within which a subnet or a method can train"


@dataclass(frozen=True)
class Outcome:
    """How the finals ended.

    Attributes:
        result: of all races, as if they were one.
        winner: whose best checkpoint is the final adapter.
        baseline: the best uniform method without a teacher; None where none fits the budget.
        teacher: who taught, see `Lesson.facts`; with ``taught: False`` nobody learned from it. None is no teacher.
        passed_over: a subnet with a lower validation loss than the winner, see `choose`: its ``name`` and its ``lead``,
            with the ``standard_error``.
    """

    result: Result
    winner: str
    baseline: str | None
    teacher: dict[str, Any] | None
    passed_over: dict[str, Any] | None = None

    @property
    def tuned(self) -> bool:
        """Whether the baseline raced at several learning rates."""
        rates = {one.rate for one in self.result.field if one.method == self.named(self.baseline or "").method}
        return len(rates) > 1

    def finite(self, name: str | None) -> bool:
        """Whether a finalist has a validation loss."""
        return name is not None and math.isfinite(self.result.standings[name].loss)

    def named(self, name: str) -> Finalist:
        """The finalist of this name."""
        return next(one for one in self.result.field if one.name == name)

    def table(self) -> list[dict[str, Any]]:
        """A row for each finalist, the winner first, and the others by their validation losses."""
        others = [name for name in best_first(self.result.losses) if name != self.winner]
        return [
            {
                "name": name,
                "method": self.named(name).method,
                "rate": self.named(name).rate,
                "params": self.named(name).params,
                "steps": reached.step,
                "best_step": reached.best_step,
                "validation": reached.metric,
                "validation_loss": reached.loss,
            }
            for name in (self.winner, *others)
            for reached in [self.result.standings[name]]
        ]


class RaceOverError(Exception):
    """The race that a process helps with has ended, or was begun anew with other settings."""


@dataclass
class Contest:
    """What the trainings of the finals share.

    They have two races. In the first one uniform methods train alone; where LoRA's best learning rate at the first rung
    is the highest or the lowest, a further one joins. In the second one these methods, each at its best
    learning rate, and the search's best subnets, at LoRA's, have a teacher: the supernet, or, where it is poor, those
    that were trained alone. A subnet inherits its weights where these are better than all that was trained alone. Where
    nobody teaches, since the recipe asks for no teacher or since a supernet of tokens is poor, the subnets race by
    themselves.

    Attributes:
        space: the bound space.
        subnets: the search's best ones, see `distinct`.
        scoring: of the task.
        train, validation: encoded rows.
        unlabelled: encoded rows that teachers label; asked for where finalists teach.
        lesson: what the supernet teaches; None is no teacher.
        args: of every training, with what `EVALUATED` sets.
        folder: gets a folder of checkpoints for each finalist; what is there is not trained again.
        settings: the section of a recipe.
        max_params: the budget.
        base: a base model as it is before any training; asked for once a training.
        load: an adapter folder, on a base model where models are scored.
        inherit: a finalist that inherits, on a base model.
        made: told of every model that is about to be trained.
        goes_on: asked before each training; where the race is over, or another one, a process that helps ends.
        batch_size: rows of a batch where finalists teach.
        lr_factors: see `own_factors`.
        task_type, modules_to_save: as in peft.
        trained, seconds: the steps that this process has trained, and their time.
    """

    space: BoundSpace
    subnets: Sequence[Subnet]
    scoring: Scoring
    train: Dataset
    validation: Dataset
    unlabelled: Callable[[], Dataset | None]
    lesson: Lesson | None
    args: TrainingArguments
    folder: Path
    settings: Finals
    max_params: int | None
    base: Callable[[], Any]
    load: Callable[[Path], Any]
    inherit: Callable[[Finalist, Any], PeftModel]
    lr_factors: Mapping[str, float]
    task_type: str | None
    modules_to_save: Sequence[str]
    made: Callable[[PeftModel], None] = lambda model: None
    goes_on: Callable[[], bool] = lambda: True
    batch_size: int = 64
    trained: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole training."""
        return whole(steps_for(self.args, len(self.train)))

    @property
    def first(self) -> int:
        """The step of the first rung."""
        return round(SHARES[0] * self.steps)

    @property
    def ends_from(self) -> int:
        """The step from which on a training ends where it overfits: the first rung's, and of numbers the last one, as
        a squared error swings more, and falls again with the rate."""
        kinds = (str(getattr(self.train.features.get(name), "dtype", "")) for name in ("labels", "label"))
        numbers = any(kind.startswith("float") for kind in kinds)
        return self.steps if numbers else self.first

    @property
    def uniform(self) -> list[Finalist]:
        """The uniform methods, without a teacher."""
        methods = uniform_methods(self.space, self.max_params, self.settings.methods)
        return uniform_finalists(methods, self.settings.rates)

    def run(self, study: optuna.Study | None = None) -> Outcome:
        """Race, with other processes that do the same; each trains some finalists. So far, the lowest loss wins."""
        uniform = self.uniform
        planned = planned_trainings(uniform, len(self.subnets), teacher=self.lesson is not None)
        total = round(planned * self.steps)
        asked = steps_for(self.args, len(self.train))
        rounded = f" ({asked}, rounded up)" if asked != self.steps else ""
        say(f"finals: at most about {planned:.1f} full trainings of {self.steps} steps{rounded}", "dim")
        with track("finals", total) as bar:
            heat = functools.partial(self._race, study=study, bar=bar)
            alone = heat(uniform, kept=best_rates, joining=self._further)
            best = min((loss for loss in alone.losses.values() if math.isfinite(loss)), default=math.inf)
            taught = self.lesson is not None and self._choose_teacher(self.lesson, alone, best)
            searched = subnet_finalists(self.subnets, best, rate_of_lora(alone.field, alone.losses), taught=taught)
            twins = taught_twins(alone.field, alone.losses) if taught else []
            rated = [one for one in twins if one.rated]
            certain = [one.name for one in (*twins[:1], *rated[:1])]
            last = heat([*searched, *twins], kept=lambda field, losses: certain)
            bar.advance(max(0, total - self.trained))  # what ended early is done
        return self._outcome([alone, last], taught=taught)

    def _further(self, field: Sequence[Finalist], losses: Mapping[str, float]) -> Finalist | None:
        rated = sum(one.rated for one in field)
        return None if rated >= len(self.settings.rates) + FURTHER else further_rate(field, losses)

    def _choose_teacher(self, lesson: Lesson, alone: Result, best: float) -> bool:
        """Where the supernet is poor, those finalists teach that are not poor themselves; one process asks them.

        Returns:
            Whether anybody teaches: of tokens, only a supernet does, and no finalist that has diverged does.
        """
        taught = self.folder / PEERS
        if not taught.is_dir() and not lesson.poor(best):
            return True
        good = [one for one in alone.field if math.isfinite(best) and alone.losses[one.name] <= POOR * best]
        if lesson.by_token or not good:
            return False
        members = [self.best(one, alone) for one in good]
        peers = Peers(lambda: (self.load(folder) for folder in members), self.scoring, self.batch_size)
        while not taught.is_dir():
            self._check_that_it_goes_on()
            with claimed(self.folder / "peers.lock") as ours:
                if not ours:
                    time.sleep(WAIT)
                elif not taught.is_dir():
                    rows = (self.train, self.validation, self.unlabelled())
                    lesson = Lesson.of(peers, "finalists", len(members), *rows)
                    lesson = replace(lesson, further=peers.teach(self.validation))
                    self._check_that_it_goes_on()
                    lesson.save(taught)
        self.lesson = Lesson.load(taught)
        return True

    def _race(self, competing: list[Finalist], *, study: optuna.Study | None, bar: Bar, **options: Any) -> Result:
        return race(competing, lambda some, step: self._train_to(some, step, bar), self.steps, study=study, **options)

    def _outcome(self, races: Sequence[Result], *, taught: bool) -> Outcome:
        competing = [finalist for one in races for finalist in one.field]
        standings = {name: standing for one in races for name, standing in one.standings.items()}
        last = best_first({name: standings[name].loss for one in races for name in one.last})
        alone = {one.name for one in competing if one.uniform and not one.taught}
        baseline = next((name for name in last if name in alone), None)
        teacher = None if self.lesson is None else {**self.lesson.facts(), **({} if taught else {"taught": False})}
        return Outcome(Result(standings, last, competing), last[0], baseline, teacher)

    def home(self, one: Finalist) -> Path:
        """A finalist's own folder."""
        return self.folder / one.slug

    def best(self, one: Finalist, result: Result) -> Path:
        """The adapter folder of a finalist's best checkpoint in a race."""
        return best_checkpoint(self._checkpoints(one), result.standings[one.name].best_step)

    def _checkpoints(self, one: Finalist) -> Path:
        return self.home(one) / "checkpoints"

    def _begin(self, one: Finalist) -> PeftModel:
        """A finalist as it is at its beginning."""
        set_seed(self.args.seed)
        base = self.base()
        if one.inherits:
            model = self.inherit(one, base)
        elif isinstance(one.origin, Uniform):
            model = get_peft_model(base, one.origin.config(self.task_type, self.modules_to_save))
        else:
            saved = list(self.modules_to_save) or None
            model = get_peft_model(
                base, self.space.to_config(one.origin, task_type=self.task_type, modules_to_save=saved)
            )
        self.made(model)
        return model

    def _train_to(self, some: Sequence[Finalist], step: int, bar: Bar) -> dict[str, Standing]:
        """Train finalists on to a step; one that another process is at is waited for."""
        reached, left = dict[str, Standing](), list(some)
        while left:
            for one in left:
                with contextlib.suppress(FileNotFoundError):  # the process that trains it removes old checkpoints
                    found = standing(self._checkpoints(one), self.scoring, step, self.ends_from)
                    if found is not None:
                        reached[one.name] = found
                        continue
                self._check_that_it_goes_on()
                with claimed(self.home(one) / ".lock") as ours:
                    if ours:
                        self._check_that_it_goes_on()
                        reached[one.name] = self._train_one(one, step, bar)
            waiting = [one for one in left if one.name not in reached]
            if len(waiting) == len(left):
                time.sleep(WAIT)
            left = waiting
        return reached

    def _check_that_it_goes_on(self) -> None:
        if not self.goes_on():
            raise RaceOverError

    def _train_one(self, one: Finalist, step: int, bar: Bar) -> Standing:
        folder, started = self._checkpoints(one), time.perf_counter()
        args = finalist_args(self.args, folder, rate=one.rate, steps=self.steps)
        before = steps_trained(folder)
        train_to(
            step,
            lambda: self._begin(one),
            self.scoring,
            self.lesson.rows if one.taught and self.lesson is not None else self.train,
            self.validation,
            args,
            ends_from=self.ends_from,
            progress=bar,
            lr_factors=own_factors(one, self.lr_factors),
            teacher_share=self.settings.teacher_share,
        )
        if trained := steps_trained(folder) - before:
            self.trained += trained
            self.seconds += time.perf_counter() - started
        found = standing(folder, self.scoring, step, self.ends_from)
        assert found is not None
        return found


def own_factors(one: Finalist, given: Mapping[str, float]) -> dict[str, float]:
    """A finalist's learning-rate factors, see `PathTrainer`.

    Args:
        one: its method may have factors of its own, which hold for kinds that are not among those given.
        given: where there are none, the rate is one for all.
    """
    own = one.origin.lr_factors if given and isinstance(one.origin, Uniform) else {}
    return {**{key: factor for key, factor in own.items() if key.partition(".")[2] not in given}, **given}


def check_field(space: BoundSpace, budget: int | None, settings: Finals, key: str = "search.max_params") -> None:
    """Refuse a budget that no uniform method fits, nor any subnet that has something to train.

    Raises:
        UserError: names the budget.
    """
    subnets = settings.subnets and (budget is None or space.cheapest_to_train <= budget)
    if not subnets and not uniform_methods(space, budget, settings.methods):
        raise invalid(key, budget, NOBODY_RACES)


def planned_trainings(uniform: Sequence[Finalist], subnets: int, *, teacher: bool) -> float:
    """What finals cost at most, in whole trainings."""
    rates = sum(one.rated for one in uniform)
    joining = FURTHER if rates > 1 else 0
    ends = min(rates, 2) + any(not one.rated for one in uniform)
    alone = race_cost(len(uniform), max(ends - 1, 0), joining=joining)
    if not teacher:
        return alone + race_cost(subnets)
    twins = Counter(one.method for one in uniform)
    certain = min(len(twins), 2 if rates else 1)
    return alone + race_cost(subnets + sum(min(count, 2) for count in twins.values()), certain)
