"""The supernet as a teacher: the mean prediction of several of its subnets, which share weights and err differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from glora_search.scoring import Batches, Scoring
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.supernet.sampling import SizeSampling
from glora_search.training.distillation import distributions, in_order

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


def soft_labels(
    supernet: Any, members: Sequence[Genome], rows: Dataset, scoring: Scoring, batch_size: int = 64
) -> Tensor:
    """The mean of the members' distributions.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        members: the subnets that teach.
        rows: encoded rows.

    Returns:
        ``[rows, classes]``, in the rows' order.
    """
    batches = Batches(rows, scoring.collator, batch_size)
    total: Tensor | None = None
    fold = supernet.folding_fits()
    for genome in members:
        with supernet.scored(genome, fold):
            found = distributions(supernet, batches)
        total = found if total is None else total + found
    assert total is not None
    return in_order(batches, torch.div(total, len(members)))
