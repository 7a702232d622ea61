"""Which of the evaluated genomes become parents."""

from __future__ import annotations

import numpy as np

from glora_search.files.arguments import Count, checked_arguments
from glora_search.search.history import History
from glora_search.space.codes import Code


class Tournament:
    """The best of a few that are drawn among the best of all.

    Args:
        n_parents: how many of the best can be drawn.
        size: how many are drawn; 1 gives all the same chance.
    """

    @checked_arguments()
    def __init__(self, n_parents: Count = 20, size: Count = 2) -> None:
        self.n_parents, self.size = n_parents, size

    def __call__(self, history: History, rng: np.random.Generator) -> Code:
        """A parent; there must be a trial that was scored on all rows."""
        best = history.ranking()[: self.n_parents]
        return history.codes[best[rng.integers(len(best), size=self.size).min()]]
