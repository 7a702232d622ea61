"""The first population: what a search begins with."""

from __future__ import annotations

import math

import numpy as np

from glora_search.files.arguments import Share, checked_arguments
from glora_search.search.evolution.variation import resized
from glora_search.search.history import History
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code


class UniformMethods:
    """The uniform methods that the space holds and the budget allows: LoRA at each rank, (IA)3, BitFit.

    A search that begins with them cannot end below them on validation.
    """

    def __call__(self, history: History) -> tuple[str, Code] | None:
        """Name and code of the next one that was not evaluated yet; None after the last."""
        if self not in history.memory:
            history.memory[self] = self.within(history.space, history.max_params)
        return next(((name, code) for name, code in history.memory[self] if history.is_new(code)), None)

    @staticmethod
    def within(space: BoundSpace, max_params: int | None) -> list[tuple[str, Code]]:
        """Name and code of those that a budget allows; what computes the same is there once."""
        found: dict[bytes, tuple[str, Code]] = {}
        for name, genome in space.uniform_methods().items():
            code = space.codec.encode(genome)
            if max_params is None or space.codec.params(code) <= max_params:
                found.setdefault(code.tobytes(), (name, code))
        return list(found.values())


class AnySize:
    """Random genomes whose parameter counts are drawn log-uniformly, up to the budget.

    Genes drawn uniformly make genomes of nearly one size, far above a small budget.

    Args:
        span: the smallest size is this part of the largest.
    """

    @checked_arguments()
    def __init__(self, span: Share = 1 / 8) -> None:
        self.span = span

    def __call__(self, history: History, rng: np.random.Generator) -> Code:
        """A random genome within the budget."""
        codec = history.codec
        smallest, largest = (codec.params(code) for code in (codec.smallest, codec.largest))
        if history.max_params is not None:
            largest = min(largest, history.max_params)
        low = max(1, smallest, largest * self.span)
        target = math.exp(rng.uniform(math.log(low), math.log(max(low, largest))))
        return resized(codec, history.sample(rng), min(max(smallest, round(target)), largest), rng, grow=True)
