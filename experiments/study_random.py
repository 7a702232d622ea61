"""The subnets of the method `random`: drawn, not searched."""

from __future__ import annotations

from typing import Any

from glora_search.search.evolution.base import GenomeSampler, Proposal
from glora_search.search.evolution.start import AnySize
from glora_search.search.history import History
from glora_search.search.samplers import MAX_TRIES


class Drawn(GenomeSampler):
    """Random genomes of half of the budget or more, each once; Optuna's random sampler begins with uniform methods."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.draw = AnySize(span=0.5)

    def propose(self, history: History, number: int) -> Proposal | None:
        """A random genome; None where none is new."""
        rng = self.rng(number)
        codes = (self.draw(history, rng) for _ in range(MAX_TRIES))
        return next((Proposal(code, "random") for code in codes if history.is_new(code)), None)
