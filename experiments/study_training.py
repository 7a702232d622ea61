"""One training of the study: its best checkpoint on validation is its result, and reads the test rows once."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback

from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.training.distillation import DistillationTrainer
from glora_search.training.loop import train, training_arguments
from glora_search.training.trainer import PathTrainer


class KeepBest(TrainerCallback):
    """Keeps what is trained as it was at the lowest validation loss, in memory.

    Args:
        model: what is trained has gradients.
        after: the step before which nothing is kept.
        decay: of the moving average of the weights that is evaluated and kept in place of them; 0 is the weights
            themselves. At step t it is at most (1 + t) / (10 + t), as in TensorFlow's ``ExponentialMovingAverage``.

    Attributes:
        best: the evaluation; None until there is one whose loss is finite.
    """

    def __init__(self, model: nn.Module, after: int = 0, decay: float = 0.0) -> None:
        self.model, self.after, self.decay = model, after, decay
        self.best: dict[str, Any] | None = None
        self._weights: dict[str, torch.Tensor] = {}
        self._average = self._copy() if decay else {}
        self._training: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the average, and put it in place of the weights while it is evaluated."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, value in self._trained():
            self._average[name].lerp_(value, 1 - decay)
        if control.should_evaluate:
            self._training = self._copy()
            self._put(self._average)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Take the weights if they are the best so far."""
        loss = metrics["eval_loss"] if state.global_step >= self.after else math.inf
        if math.isfinite(loss) and (self.best is None or loss < self.best["eval_loss"]):
            self.best = {**metrics, "step": state.global_step}
            self._weights = self._copy()
        if self.decay:
            self._put(self._training)

    def restore(self) -> None:
        """Put the best weights back."""
        self._put(self._weights)

    @torch.no_grad()
    def _put(self, weights: dict[str, torch.Tensor]) -> None:
        for name, value in self._trained():
            value.copy_(weights[name])

    def _copy(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self._trained()}

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, value) for name, value in self.model.named_parameters() if value.requires_grad]


class AllocateRanks(TrainerCallback):
    """What peft's AdaLoRA needs: it prunes after each optimizer step, and its regulariser is no part of a score."""

    def __init__(self, model: Any) -> None:
        self.model, self.config = model, model.active_peft_config
        self.weight = self.config.orth_reg_weight

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The loss of a training step has the regulariser in it."""
        self.config.orth_reg_weight = self.weight

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prune ranks, while the gradients are there."""
        self.model.base_model.update_and_allocate(state.global_step + 1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What is evaluated next has not."""
        self.config.orth_reg_weight = 0.0


def settings_of(rate: float, epochs: float, batch: int) -> dict[str, Any]:
    """The training arguments that all methods have in common, in a recipe too."""
    return {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
    }


def fit(
    model: Any,
    task: Any,
    settings: dict[str, Any],
    seed: int,
    *,
    lr_factors: dict[str, float],
    taught: Dataset | None = None,
    teacher_share: float = 0.5,
    after: int = 0,
    decay: float = 0.0,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, Any]:
    """Train a model, evaluated about once an epoch, and score its best checkpoint.

    Args:
        model: what is trained has gradients.
        task: the rows, the collator and the metric.
        settings: see `settings_of`.
        lr_factors: see `PathTrainer`.
        taught: the train rows with what a teacher says of them.
        after: the step from which a checkpoint counts.
        decay: of the moving average whose checkpoints count, see `KeepBest`; 0 for those of the weights themselves.
        callbacks: of the method.

    Returns:
        The columns of the csv; a training that diverged has nan.
    """
    started, kept = time.perf_counter(), KeepBest(model, after, decay)
    epoch = -(-len(task.train) // settings["per_device_train_batch_size"])
    steps = round(epoch * settings["num_train_epochs"])
    settings = {**settings, "max_steps": steps, "eval_strategy": "steps", "eval_steps": min(epoch, steps)}
    options: dict[str, Any] = {"trainer_cls": PathTrainer, "lr_factors": lr_factors}
    if taught is not None:
        options |= {"trainer_cls": DistillationTrainer, "teacher_share": teacher_share}
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments({**settings, "save_strategy": "no"}, Path(folder), seed)
        rows = task.train if taught is None else taught
        train(model, task, rows, task.validation, args, description="train", callbacks=[*callbacks, kept], **options)
    test_rows = task.test_split()
    found: dict[str, Any] = {"epochs": settings["num_train_epochs"], "metric": task.metric}
    figures = dict.fromkeys(("validation", "validation_loss", "test", "test_loss"), math.nan)
    if kept.best is not None:
        kept.restore()
        test = evaluate(model, length_sorted_batches(test_rows, task.collator, 64), task)
        figures = {"validation": kept.best[f"eval_{task.metric}"], "validation_loss": kept.best["eval_loss"]}
        figures |= {"test": test.metric, "test_loss": test.loss}
        found["best_epoch"] = round(kept.best["step"] / epoch, 2)
    return {**found, **figures, "test_rows": len(test_rows), "seconds": round(time.perf_counter() - started, 1)}
