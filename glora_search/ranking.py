"""Which of two results is better: one order for the search, the stages, `find_adapter` and the report."""

from __future__ import annotations

import math


def rank_key(metric: float, loss: float = 0.0, *, direction: str = "maximize") -> tuple[float, float]:
    """Sorts results, best first.

    Args:
        metric: the score.
        loss: breaks ties of the score, lower is better.
        direction: ``maximize`` or ``minimize``, of the score.

    Returns:
        The key; a result that is not finite comes after all that are.
    """
    if not (math.isfinite(metric) and math.isfinite(loss)):
        return math.inf, math.inf
    return (-metric if direction == "maximize" else metric), loss
