"""The supernet as a teacher: the mean prediction of several of its subnets, which share weights and err differently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from glora_search.scoring import Batch, Batches, Scoring, on_device
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.supernet.sampling import SizeSampling
from glora_search.training.answers import Answers
from glora_search.training.teaching import MeanPrediction

UNSEEN = 1_000_000
"""A step that no training reaches: its subnets are drawn as those of a training are, and are others."""


def draw_members(space: BoundSpace, *, count: int = 8, max_params: int | None = None, seed: int = 0) -> list[Genome]:
    """Subnets of all sizes whose mean prediction teaches.

    Args:
        count: how many.
        max_params: the largest size; None is the space's largest.
    """
    sampling = SizeSampling(space, seed=seed, max_params=max_params)
    return [sampling(UNSEEN + member)[0] for member in range(count)]


@dataclass
class Teacher(MeanPrediction):
    """The mean of several subnets.

    Attributes:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        members: the subnets that teach.
        scoring: of the task.
        batch_size: rows of a batch.
    """

    supernet: Any
    members: Sequence[Genome]
    scoring: Scoring
    batch_size: int = 64
    answers: Answers | None = field(default=None, init=False)

    @torch.inference_mode()
    def said(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """See `MeanPrediction`; batch by batch, since what is said of tokens can be gigabytes."""
        self.supernet.eval()
        device = next(self.supernet.parameters()).device
        fold = self.supernet.folding_fits()
        first, *others = self.members
        for batch in batches:
            inputs = on_device(batch, device)
            total = self._said(first, inputs, fold)
            for genome in others:
                total.add_(self._said(genome, inputs, fold))
            yield total.div_(len(self.members)), inputs["labels"]

    def _said(self, genome: Genome, inputs: Batch, fold: bool) -> Tensor:
        """What one subnet says of a batch's items."""
        with self.supernet.scored(genome, fold):
            logits = self.supernet(**inputs).logits
        return self._read(self.supernet, logits, inputs["labels"])
