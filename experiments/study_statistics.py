"""The study's statistics: what is chosen on validation, paired differences, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

PAIR = ["encoder", "data", "rows", "seed"]
"""What two methods have in common where they are compared."""
CELL = [*PAIR, "budget", "method"]
UNSEEN = ["test", "test_loss", "baseline_test"]
"""What no choice may look at."""
RESAMPLES = 10_000
TIE = 0.3
"""Points, up to which two scores are a tie."""


def tuned(trainings: pd.DataFrame) -> pd.DataFrame:
    """Each cell's training with the lowest validation loss, with what the whole cell has cost.

    Args:
        trainings: the csv; a training whose validation loss is nan has diverged.

    Returns:
        A row for each cell, with the ``trainings`` and ``seconds`` of all of its rates, and their ``tried`` number.
    """
    return _choose(trainings, CELL)


def best_of(chosen: pd.DataFrame, methods: Sequence[str], name: str) -> pd.DataFrame:
    """In each pair, the one of these methods with the lowest validation loss, as a method of this name."""
    own = chosen[chosen["method"].isin(methods)]
    found = _choose(own.drop(columns="tried", errors="ignore"), PAIR)
    return found.assign(picked=found["method"], method=name)


def _choose(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The row with the lowest validation loss of each group; the test's figures are joined to it afterwards."""
    rows = rows[np.isfinite(rows["validation_loss"])].reset_index(drop=True)
    seen = rows.drop(columns=[name for name in UNSEEN if name in rows])
    groups = seen.groupby(by, sort=True)
    best = seen.loc[groups["validation_loss"].idxmin()]
    sums = groups[["trainings", "seconds"]].sum().assign(tried=groups.size()).reset_index()
    best = best.drop(columns=["trainings", "seconds"]).reset_index().merge(sums, on=by)
    unseen = rows[[name for name in UNSEEN if name in rows]]
    return best.join(unseen, on="index").drop(columns="index")


def paired(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """What one method is above another, where both are there.

    Args:
        one, other: of `tuned` or `best_of`, a row for each pair.

    Returns:
        ``data``, ``seed``, ``points`` (of the test), ``loss`` (the test loss as a share of the other's), and the cost
        of both, ``trainings`` and ``other_trainings``.
    """
    both = one.merge(other, on=PAIR, suffixes=("", "_other"))
    return pd.DataFrame(
        {
            **{name: both[name] for name in PAIR},
            "points": 100 * (both["test"] - both["test_other"]),
            "loss": both["test_loss"] / both["test_loss_other"],
            "trainings": both["trainings"],
            "other_trainings": both["trainings_other"],
            "minutes": both["seconds"] / 60,
            "other_minutes": both["seconds_other"] / 60,
            "params": both["params"],
            "other_params": both["params_other"],
        }
    )


@dataclass(frozen=True)
class Difference:
    """A mean paired difference in points.

    Attributes:
        mean: of the sets, each of which is the mean of its seeds.
        low, high: the 95 % interval of `interval`.
        sets: how many data sets.
        fewest, most: seeds of a set.
        p: of Wilcoxon's signed-rank test over the sets; nan where there is one.
        wins, ties, losses: sets above, within and below `TIE` points.
        worst: the set with the lowest difference, and that difference.
    """

    mean: float
    low: float
    high: float
    sets: int
    fewest: int
    most: int
    p: float
    wins: int
    ties: int
    losses: int
    worst: tuple[str, float]

    @property
    def seeds(self) -> str:
        """Of each set."""
        return str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def difference(pairs: pd.DataFrame) -> Difference | None:
    """The mean of paired differences, see `paired`; None where there is no pair."""
    if pairs.empty:
        return None
    groups = pairs.groupby("data")["points"]
    by_set, sizes = groups.mean(), groups.size()
    low, high = interval([group.to_numpy() for _, group in groups])
    wins, losses = int((by_set > TIE).sum()), int((by_set < -TIE).sum())
    p = float(wilcoxon(by_set).pvalue) if len(by_set) > 1 and (by_set != 0).any() else math.nan
    return Difference(
        mean=float(by_set.mean()),
        low=low,
        high=high,
        sets=len(by_set),
        fewest=int(sizes.min()),
        most=int(sizes.max()),
        p=p,
        wins=wins,
        ties=len(by_set) - wins - losses,
        losses=losses,
        worst=(str(by_set.idxmin()), float(by_set.min())),
    )


def interval(groups: Sequence[np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean of group means, by a hierarchical bootstrap.

    A resample draws as many groups as there are, with replacement, and in each of them as many members.

    Args:
        groups: of each data set, the differences of its seeds.
    """
    rng = np.random.default_rng(seed)
    count = len(groups)
    drawn = rng.integers(count, size=(resamples, count))
    means = np.empty((resamples, count))
    for number, members in enumerate(groups):
        where = drawn == number
        picks = rng.integers(len(members), size=(int(where.sum()), len(members)))
        means[where] = np.asarray(members)[picks].mean(1)
    low, high = np.percentile(means.mean(1), [2.5, 97.5])
    return float(low), float(high)
