"""Racing: an evaluation that has no chance any more is stopped."""

from __future__ import annotations

import numpy as np

from glora_search.files.arguments import Amount, Count, checked_arguments
from glora_search.search.history import History


class Race:
    """Decides after each leg of an evaluation whether the genome can still be one of the best.

    What the rest of the rows adds to a score is known from the trials that were scored on all rows: its mean and its
    spread. A genome is hopeless where even ``margin`` spreads of luck would not bring it among the ``n_elite`` best.
    So what becomes a parent, or the result, was always scored on all rows.

    Args:
        n_elite: the best genomes, which a genome must be able to reach.
        margin: in standard deviations.
        warm_up: trials to be scored on all rows before any is stopped.
    """

    @checked_arguments()
    def __init__(self, n_elite: Count = 20, margin: Amount = 2.0, warm_up: Count = 30) -> None:
        self.n_elite, self.margin, self.warm_up = n_elite, margin, warm_up

    def hopeless(self, history: History, leg: int, score: float) -> bool:
        """Whether to stop.

        Args:
            leg: of the evaluation, from 0.
            score: on the rows so far, lower is better, as in ``history.scores``.
        """
        if len(history.whole) < max(self.warm_up, self.n_elite):
            return False
        sign = history.sign
        rest = [
            final - sign * history.trials[position].intermediate_values[leg]
            for position, final in zip(history.whole, history.scores, strict=True)
            if leg in history.trials[position].intermediate_values
        ]
        if len(rest) < self.warm_up:
            return False
        threshold = np.partition(history.scores, self.n_elite - 1)[self.n_elite - 1]
        return bool(score + np.mean(rest) - self.margin * np.std(rest) > threshold)
