"""A few training steps of a candidate before it is scored: what it inherits is fitted to all subnets at once."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PrinterCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from glora_search.errors import invalid
from glora_search.files.arguments import Count
from glora_search.scoring import Scoring
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.space.layers import Genome
from glora_search.training.loop import unprepared
from glora_search.training.trainer import PathTrainer


def calibration_args(args: TrainingArguments, steps: int) -> TrainingArguments:
    """The arguments of a supernet's training, for a few steps: half the learning rate, which falls linearly.

    What belongs to a whole training is off: evaluations, checkpoints, logs, uploads, NEFTune's noise, and loading rows
    by further processes, which a search's workers cannot start.

    Raises:
        UserError: the number of steps is not a positive whole number.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise invalid("calibration_steps", steps, "a whole number, at least 1")
    own = copy.copy(args)
    own.max_steps, own.learning_rate = steps, args.learning_rate / 2
    own.lr_scheduler_type, own.lr_scheduler_kwargs = SchedulerType.LINEAR, {}
    own.warmup_steps = 0.1 if steps >= 10 else 0  # the first step of a warm-up changes nothing
    own.eval_strategy = own.save_strategy = own.logging_strategy = IntervalStrategy.NO
    own.eval_on_start = own.load_best_model_at_end = own.push_to_hub = own.enable_jit_checkpoint = False
    own.dataloader_num_workers, own.dataloader_persistent_workers, own.dataloader_prefetch_factor = 0, False, None
    own.disable_tqdm, own.report_to, own.neftune_noise_alpha = True, [], None
    return own


def subnet_evaluator(
    supernet: Any,
    scoring: Scoring,
    rows: Dataset,
    validation: Dataset,
    args: TrainingArguments,
    *,
    calibration_steps: int = 0,
    lr_factors: Mapping[str, float] | None = None,
    batch_size: Count = 64,
    fold: bool | None = None,
) -> SubnetEvaluator:
    """What a search scores subnets with: on the validation rows, each trained a little before where that is asked.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`; trainable where there are calibration steps.
        scoring: the collator and the metric.
        rows, args, lr_factors: how the supernet was trained, for the calibration.
        calibration_steps: see `Calibration`; 0 scores what a subnet inherits.
        fold: see `SubnetEvaluator`.

    Raises:
        UserError: the number of steps is not a whole number, at least 0.
    """
    calibration = None
    if calibration_steps != 0:
        few_steps = calibration_args(args, calibration_steps)
        options: dict[str, Any] = {"data_collator": scoring.collator, "lr_factors": lr_factors}
        calibration = Calibration(supernet, rows, few_steps, **options)
    return SubnetEvaluator(supernet, validation, scoring, batch_size, calibration=calibration, fold=fold)


class Calibration:
    """Trains single subnets of a supernet a little; afterwards its weights are what they were, bit for bit.

    Every subnet sees the same batches with the same random numbers, so that what a subnet is worth depends on nothing
    but the subnet. Buffers, such as BatchNorm's statistics, stay as they are. `docs/fidelity.md` says what it gains
    and what it costs.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`, trainable.
        dataset: train rows; never those that score.
        args: how to train, see `calibration_args`.
        data_collator: rows -> batch.
        lr_factors: learning rates by kind of path, see `PathTrainer`.

    Raises:
        UserError: the supernet was loaded for inference.
    """

    def __init__(
        self,
        supernet: Any,
        dataset: Dataset,
        args: TrainingArguments,
        *,
        data_collator: Any = None,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        trained = {name: parameter for name, parameter in supernet.named_parameters() if parameter.requires_grad}
        if not trained:
            raise invalid("supernet", "loaded for inference", "one loaded with is_trainable=True")
        self._trained = list(trained.values())
        self._has_head = any(supernet.prefix not in name for name in trained)
        self.supernet, self.dataset, self.args = supernet, dataset, args
        self.data_collator, self.lr_factors = data_collator, lr_factors

    @contextmanager
    def __call__(self, genome: Genome) -> Iterator[None]:
        """A block in which a subnet is active and has the weights that it is scored with."""
        kept = [parameter.detach().clone() for parameter in self._trained]
        self.supernet.activate(genome)
        try:
            if self._has_head or self.supernet.space.params(genome):  # else there is nothing to train
                with _own_random_numbers(), _without_trainers_traces(self.supernet):
                    self._train()
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self._trained, kept, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None

    def _train(self) -> None:
        trainer = PathTrainer(
            model=self.supernet,
            args=self.args,
            train_dataset=self.dataset,
            data_collator=self.data_collator,
            lr_factors=self.lr_factors,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """A Trainer seeds all generators; what others draw after it must not begin anew each time."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def _without_trainers_traces(model: nn.Module) -> Iterator[None]:
    """A block of training after which the model is in its mode, with its forward and its buffers; so is the next one's
    before."""
    training, buffers = model.training, [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with unprepared(model):
            yield
    finally:
        model.train(training)
        for buffer, value in buffers:
            buffer.copy_(value)
