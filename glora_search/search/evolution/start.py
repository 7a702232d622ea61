"""The first population: what a search begins with."""

from __future__ import annotations

import math

import numpy as np

from glora_search.files.arguments import Share, checked_arguments
from glora_search.search.evolution.variation import resized
from glora_search.search.history import History
from glora_search.space.codes import Code


class UniformMethods:
    """The uniform methods that the space holds and the budget allows: LoRA at each rank, (IA)3, BitFit.

    A search that begins with them cannot end below them on validation.
    """

    def __call__(self, history: History) -> tuple[str, Code] | None:
        """Name and code of the next one that was not evaluated yet; None after the last."""
        if self not in history.memory:
            found = [(name, history.codec.encode(g)) for name, g in history.space.uniform_methods().items()]
            history.memory[self] = [(name, code) for name, code in found if history.fits(code)]
        return next(((name, code) for name, code in history.memory[self] if history.is_new(code)), None)


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
        return resized(codec, history.sample(rng), max(smallest, round(target)), rng, grow=True)
