"""Which of two results is better: one order for the search, the stages, `find_adapter` and the report."""

from __future__ import annotations

import math


def is_finite(metric: float | None, loss: float | None = 0.0) -> bool:
    """Whether a result is one: a training that has diverged has a loss of no finite value, or noted none.

    Its metric alone does not tell: the class with the largest of logits that are all NaN is the first.
    """
    return metric is not None and loss is not None and math.isfinite(metric) and math.isfinite(loss)


def rank_key(metric: float | None, loss: float | None = 0.0, *, direction: str = "maximize") -> tuple[float, float]:
    """Sorts results, best first.

    Args:
        metric: the score; None is none.
        loss: breaks ties of the score, lower is better; None is none.
        direction: ``maximize`` or ``minimize``, of the score.

    Returns:
        The key; a result that is not finite comes after all that are.
    """
    if metric is None or loss is None or not is_finite(metric, loss):
        return math.inf, math.inf
    return (-metric if direction == "maximize" else metric), loss
