"""Who wins a race: the lowest validation loss, unless a searched subnet's lead may be noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from glora_search.finals.contest import Contest, Outcome
from glora_search.scoring import Batch, Batches, items_of, outputs, predicts_next

PARTS = 32
"""Losses are compared in so many batches, where there are so many rows."""


def choose(contest: Contest, outcome: Outcome) -> Outcome:
    """Prefer the best uniform method to a searched subnet that leads by no more than `Finals.margin` standard errors.

    The search has chosen its subnets by the same validation rows, so that their losses would be higher on others. This
    is the rule of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3) for the
    paired difference of the mean losses.

    Args:
        contest: has trained the finalists.
        outcome: of its races, with the lowest loss as the winner.

    Returns:
        The outcome; where the subnet is passed over, with the best of the uniform methods that were never dropped.
    """
    margin, leader = contest.settings.margin, outcome.named(outcome.winner)
    rival = next((one for one in map(outcome.named, outcome.result.last) if one.uniform), None)
    if not margin or leader.uniform or rival is None or not outcome.finite(rival.name):
        return outcome
    size = max(1, min(contest.batch_size, len(contest.validation) // PARTS))
    batches = Batches(contest.validation, contest.scoring.collator, size)
    own, others = (batch_losses(contest.load(contest.best(one, outcome.result)), batches) for one in (leader, rival))
    lead, error = paired_difference(others[0], own[0], own[1])
    if not lead <= margin * error:
        return outcome
    passed = {"name": leader.name, "lead": lead, "standard_error": error}
    return replace(outcome, winner=rival.name, passed_over=passed)


@torch.inference_mode()
def batch_losses(model: nn.Module, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """The summed loss of each batch, and its items: rows, or tokens whose label counts; both ``[batches]``."""
    shifted = predicts_next(model)
    sums, counts = list[float](), list[int]()
    for batch, output in outputs(model, batches):
        counts.append(int(items_of(batch["labels"], shifted=shifted).sum()))
        sums.append(float(output.loss) * counts[-1] if counts[-1] else 0.0)
    return np.array(sums), np.array(counts, dtype=float)


def paired_difference(first: np.ndarray, second: np.ndarray, items: np.ndarray) -> tuple[float, float]:
    """By how much a mean loss is above another one on the same rows, and the standard error of that.

    Source: the ratio estimator over clusters (Cochran, Sampling Techniques, 1977, section 2.11); a batch is a cluster.

    Args:
        first, second: summed losses of batches, ``[batches]``.
        items: that they are the sums of, ``[batches]``.

    Returns:
        The difference of the means of an item, and its standard error; infinite for a single batch.
    """
    apart, count = first - second, len(items)
    mean = float(apart.sum() / items.sum())
    if count < 2:
        return mean, math.inf
    spread = np.square(apart - mean * items).sum() * count / (count - 1)
    return mean, float(np.sqrt(spread) / items.sum())
