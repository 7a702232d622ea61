"""Who wins a race: the lowest validation loss, but a searched subnet only if it leads by more than a standard error."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from datasets import Dataset
from torch import nn

from glora_search.finals.contest import Contest, Outcome
from glora_search.finals.rungs import best_first
from glora_search.scoring import Batch, Batches, Sums

GROUPS = 32
"""Losses are compared over so many groups of validation rows at least, where there are so many rows."""


def choose(contest: Contest, outcome: Outcome) -> Outcome:
    """Prefer the best uniform method to a searched subnet that leads by no more than `Finals.margin` standard errors.

    The search has chosen its subnets by the same validation rows, so that their losses would be higher on others. The
    rule is that of one standard error (Breiman et al., Classification and Regression Trees, 1984, section 3.4.3), here
    of the paired difference. The error is that of drawing the validation rows; trainings vary too.

    Args:
        contest: has trained the finalists.
        outcome: of its races, with the lowest loss as the winner.

    Returns:
        The outcome, with the best uniform method as its winner where the subnet is passed over.
    """
    margin, leader, losses = contest.settings.margin, outcome.named(outcome.winner), outcome.result.losses
    rival = next((one for one in map(outcome.named, best_first(losses)) if one.uniform), None)
    if not margin or leader.uniform or rival is None or not outcome.finite(rival.name):
        return outcome
    own, others = (
        group_losses(contest.load(contest.best(one, outcome.result)), contest.validation, contest)
        for one in (leader, rival)
    )
    lead, error = paired_difference(others[0], own[0], own[1])
    if not lead <= margin * error:
        return outcome
    passed = {"name": leader.name, "lead": lead, "standard_error": error}
    return replace(outcome, winner=rival.name, passed_over=passed)


def group_losses(model: nn.Module, rows: Dataset, contest: Contest) -> tuple[np.ndarray, np.ndarray]:
    """The summed loss of random groups of rows, the same ones for each model, and the items of each group.

    Args:
        contest: has the scoring, and the largest size of a batch.

    Returns:
        The sums and the counts of rows, or of tokens whose label counts, both ``[groups]``.
    """
    found = list[Sums]()
    for batch in random_groups(rows, contest):
        found.append(Sums())
        found[-1].add(model, [batch], contest.scoring)
    return np.array([one.loss for one in found]), np.array([one.items for one in found], dtype=float)


def random_groups(rows: Dataset, contest: Contest) -> Iterator[Batch]:
    """All rows in random groups, always the same ones: neighbours in a file, or of one length, often have losses alike,
    and the error over groups of them would be too large."""
    size = max(1, min(contest.batch_size, len(rows) // GROUPS))
    order = np.random.default_rng(0).permutation(len(rows))
    for start in range(0, len(rows), size):
        yield Batches(rows.select(order[start : start + size]), contest.scoring.collator, size)[0]


def paired_difference(first: np.ndarray, second: np.ndarray, items: np.ndarray) -> tuple[float, float]:
    """By how much a mean loss is above another one on the same rows, and the standard error of that.

    Source: the ratio estimator over clusters (Cochran, Sampling Techniques, 1977, section 2.11); a group is a cluster.

    Args:
        first, second: summed losses of groups, ``[groups]``.
        items: in each group, ``[groups]``.

    Returns:
        The difference of the mean losses of an item, and its standard error; infinite for a single group.
    """
    apart, count = first - second, len(items)
    mean = float(apart.sum() / items.sum())
    if count < 2:
        return mean, math.inf
    spread = np.square(apart - mean * items).sum() * count / (count - 1)
    return mean, float(np.sqrt(spread) / items.sum())
