"""Successive halving: how long each rung trains, who goes on, and who wins.

Source: arXiv 1502.07943. Optuna's own `SuccessiveHalvingPruner` is asynchronous: of few trainings that reach a rung one
after the other, it lets the first one pass whatever it is worth. Here a rung is decided once all have reached it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHARES = (0.25, 0.5, 1.0)
"""The rungs, as shares of a whole training."""
PARTS = 16
"""A training is evaluated so many times; every rung ends with an evaluation."""


@dataclass(frozen=True)
class Standing:
    """How far a finalist is.

    Attributes:
        step: the optimizer steps it was trained for.
        loss: the lowest validation loss so far; ``inf`` where it has diverged.
        metric: the validation metric at that checkpoint.
        best_step: the step of that checkpoint.
        losses: step -> validation loss, of all evaluations.
    """

    step: int
    loss: float
    metric: float
    best_step: int
    losses: Mapping[int, float]

    @property
    def over(self) -> bool:
        """Whether training on is in vain: the loss has not come down in the second half."""
        return self.best_step * 2 <= self.step


def whole(steps: int) -> int:
    """The steps of a whole training: so many, rounded up to a multiple of `PARTS`."""
    return max(PARTS, PARTS * math.ceil(steps / PARTS))


def survivors(losses: Mapping[str, float], places: int, kept: Sequence[str] = ()) -> list[str]:
    """Who goes on to the next rung, with the best and those that are never dropped.

    Args:
        losses: finalist -> validation loss; what is not finite is last.
        places: how many go on.
        kept: finalists that go on in any case, in the places of others.

    Returns:
        Best first.
    """
    ranked = best_first(losses)
    certain = {ranked[0], *kept}
    others = [name for name in ranked if name not in certain][: max(places - len(certain), 0)]
    return [name for name in ranked if name in certain or name in others]


def best_first(losses: Mapping[str, float]) -> list[str]:
    """Finalists by their validation loss; what is not finite is last."""
    return sorted(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf)


def race_cost(finalists: int, never_dropped: int = 0, *, joining: int = 0, shares: Sequence[float] = SHARES) -> float:
    """The highest cost of a race in whole trainings: half go on, and no fewer than the best and those never dropped.

    Args:
        joining: finalists that join at the first rung, see `race`.
    """
    cost, alive, before = joining * shares[0], finalists, 0.0
    fewest = min(finalists, never_dropped + 1)
    for share in shares:
        cost += alive * (share - before)
        alive, before = max(math.ceil(alive / 2), fewest), share
    return cost
