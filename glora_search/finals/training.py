"""One finalist's training, rung by rung: it stops where the rung ends, and goes on from its checkpoint."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from glora_search.files.text import read_json
from glora_search.finals.rungs import PARTS, Standing
from glora_search.progress import Bar
from glora_search.scoring import Scoring
from glora_search.training.distillation import DistillationTrainer
from glora_search.training.loop import last_checkpoint, train


class StopAt(TrainerCallback):
    """Ends a training at a step; the schedule is that of the whole training."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the rung ends."""
        if state.global_step >= self.step:
            control.should_training_stop = True


class StopWhereOver(TrainerCallback):
    """Ends a training that overfits; the race asks no more of it.

    Args:
        ends_from: the step from which on it does.
    """

    def __init__(self, ends_from: int) -> None:
        self.ends_from = ends_from

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the training is over, see `Standing.over`."""
        if state.global_step >= self.ends_from and _standing(state.log_history, state.global_step).over:
            control.should_training_stop = True


class Steps(TrainerCallback):
    """Moves the bar of the whole race."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self.bar.advance(1)


def finalist_args(args: TrainingArguments, folder: Path, *, rate: float, steps: int) -> TrainingArguments:
    """The arguments of a finalist: a whole training of so many steps, evaluated `PARTS` times, the best one kept.

    Args:
        args: what all finalists share.
        folder: of its checkpoints.
        rate: what the learning rate is multiplied by.
        steps: of a whole training, a multiple of `PARTS`.
    """
    own = copy.copy(args)
    own.output_dir, own.max_steps, own.learning_rate = str(folder), steps, args.learning_rate * rate
    own.eval_steps = own.save_steps = steps // PARTS
    return own


def train_to(
    step: int,
    fresh: Callable[[], nn.Module],
    scoring: Scoring,
    rows: Dataset,
    validation: Dataset,
    args: TrainingArguments,
    *,
    ends_from: int,
    progress: Bar,
    **options: Any,
) -> None:
    """Train a finalist on to a step; one that has reached it is not trained again.

    Args:
        step: of the whole training.
        fresh: the model as it was at its beginning; what it has learned since is in its checkpoints.
        rows: with soft labels where it is taught.
        args: see `finalist_args`.
        ends_from: the step from which on it ends where it overfits.
        progress: moved by each step.
        options: of `DistillationTrainer`.
    """
    if standing(Path(args.output_dir), scoring, step, ends_from) is None:
        train(
            fresh(),
            scoring,
            rows,
            validation,
            args,
            resume=True,
            trainer_cls=DistillationTrainer,
            callbacks=[StopAt(step), StopWhereOver(ends_from), Steps(progress)],
            **options,
        )


def standing(folder: Path, scoring: Scoring, step: int, ends_from: int) -> Standing | None:
    """How a finalist stood at a step, or where it ended before; None where it has not come so far.

    Args:
        folder: of its checkpoints.
        step: of the whole training.
        ends_from: see `train_to`.
    """
    last = last_checkpoint(folder)
    if last is None:
        return None
    state = read_json(Path(last) / "trainer_state.json")
    reached = min(int(state["global_step"]), step)
    found = _standing(state["log_history"], reached, f"eval_{scoring.metric}")
    return found if reached == step or (reached >= ends_from and found.over) else None


def _standing(history: Sequence[Mapping[str, Any]], step: int, metric: str = "eval_loss") -> Standing:
    """How a training stood at a step, from Trainer's log."""
    scored = [entry for entry in history if "eval_loss" in entry and entry["step"] <= step]
    losses = {int(entry["step"]): float(entry["eval_loss"]) for entry in scored}
    finite = [entry for entry in scored if math.isfinite(entry["eval_loss"])]
    if not finite:
        return Standing(step, math.inf, math.nan, 0, losses)
    best = min(finite, key=lambda entry: float(entry["eval_loss"]))
    return Standing(step, float(best["eval_loss"]), float(best[metric]), int(best["step"]), losses)


def steps_trained(folder: Path) -> int:
    """The steps of a finalist's last checkpoint."""
    last = last_checkpoint(folder)
    return 0 if last is None else int(Path(last).name.rpartition("-")[2])


def best_checkpoint(folder: Path, best_step: int) -> Path:
    """The adapter folder of a finalist's best checkpoint."""
    return folder / f"checkpoint-{best_step}"
