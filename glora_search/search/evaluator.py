"""Genome -> metrics: scoring a supernet's subnets, at the bare model's speed where memory allows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor

from glora_search.scoring import Batch, Evaluation, Scoring, Sums, evaluate, length_sorted_batches
from glora_search.space.layers import Genome
from glora_search.tuners.glora import GLoraConfig


@dataclass(frozen=True)
class Inherited:
    """A subnet with the weights that it inherits from a supernet.

    Attributes:
        config: its fixed configuration.
        weights: names of an adapter's saved file -> tensors, the head included.
        evaluation: what it is worth with them.
    """

    config: GLoraConfig
    weights: dict[str, Tensor]
    evaluation: Evaluation


class SubnetEvaluator:
    """Genome -> `Evaluation`, with the weights that the subnet inherits from a supernet.

    Attributes:
        calibrated: genome -> a block in which the supernet holds what the subnet is scored with.
        batches: the rows in batches of ``batch_size``.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        dataset: encoded rows, with ``labels``.
        scoring: the collator and the metric.
        batch_size: rows a batch.
        calibration: trains each subnet a little before it is scored, see `Calibration`; None scores what it inherits.
        fold: fold a subnet into the base weights, which is faster and takes a second copy of the adapted weights; None
            folds where the device has the memory.
    """

    def __init__(
        self,
        supernet: Any,
        dataset: Dataset,
        scoring: Scoring,
        batch_size: int = 64,
        *,
        calibration: Callable[[Genome], AbstractContextManager[None]] | None = None,
        fold: bool | None = None,
    ) -> None:
        self.supernet, self.scoring = supernet, scoring
        self.calibrated = calibration or (lambda genome: nullcontext())
        self.batches = length_sorted_batches(dataset, scoring.collator, batch_size)
        self._dataset, self.batch_size, self._fold = dataset, batch_size, fold

    @functools.cached_property
    def folds(self) -> bool:
        """Whether subnets are folded: as was asked, else by the memory that is free at the first one."""
        return bool(self.supernet.folding_fits()) if self._fold is None else self._fold

    def __call__(self, genome: Genome) -> Evaluation:
        with self.calibrated(genome):
            return self._score(genome)

    def _score(self, genome: Genome) -> Evaluation:
        with self.supernet.scored(genome, self.folds):
            return evaluate(self.supernet, self.batches, self.scoring)

    def inherit(self, genome: Genome, **config: Any) -> Inherited:
        """What is exported of a subnet: the weights that it is scored with, and its score.

        Args:
            config: further fields of the `GLoraConfig`.
        """
        with self.calibrated(genome):
            evaluation, weights = self._score(genome), self.supernet.subnet_state_dict(genome)
            return Inherited(self.supernet.subnet_config(genome, **config), weights, evaluation)

    def legs(self, genome: Genome) -> Iterator[Evaluation]:
        """The evaluation in parts: after an eighth, a quarter and half of the rows, and after all of them.

        The first rows are a random part of all, the same for each genome. Close the iterator where it is left early:
        up to then the subnet is folded into the model.
        """
        with self.calibrated(genome), self.supernet.scored(genome, self.folds):
            sums = Sums()
            for batches in self._legs:
                sums.add(self.supernet, batches, self.scoring)
                yield sums.evaluation(self.scoring, len(self._dataset))

    @functools.cached_property
    def _legs(self) -> list[list[Batch]]:
        """The rows in random parts, each sorted by length; a part smaller than a batch is not worth its forward."""
        order = np.random.default_rng(0).permutation(len(self._dataset))
        ends = [len(order) // part for part in (8, 4, 2) if len(order) // part >= self.batch_size] + [len(order)]
        parts = [self._dataset.select(order[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        return [length_sorted_batches(part, self.scoring.collator, self.batch_size) for part in parts]
