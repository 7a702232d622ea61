"""Which subnet a training step trains.

A strategy is a function of the step alone (and of its seed): every rank of a distributed run draws the same subnet,
and a resumed run goes on with the same sequence.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from glora_search.space import BoundSpace, Genome


class Sampling(Protocol):
    """Step -> the genome that it trains."""

    def __call__(self, step: int) -> Genome: ...


class UniformSampling:
    """Every gene drawn uniformly, as in the paper (arXiv 2306.07967, section 3.4)."""

    def __init__(self, space: BoundSpace, *, seed: int = 0) -> None:
        self.space, self.seed = space, seed

    def __call__(self, step: int) -> Genome:
        return self.space.sample(np.random.default_rng([self.seed, step]))


class SizeSampling:
    """Parameter counts drawn log-uniformly, and the space's uniform methods in a share of the steps.

    Uniform draws are nearly all of one middle size and hardly ever a simple method; this one trains the whole range
    that a search can look at.

    Args:
        space: the bound space.
        seed: seed of the sequence.
        max_params: the largest size to train; None is the space's largest.
        anchor_share: the share of the steps that train a uniform method which fits.
    """

    def __init__(
        self, space: BoundSpace, *, seed: int = 0, max_params: int | None = None, anchor_share: float = 0.25
    ) -> None:
        self.space, self.seed = space, seed
        smallest, largest = space.params(space.smallest), space.params(space.largest)
        self.max_params = largest if max_params is None else min(max(max_params, smallest), largest)
        self.anchors = [g for g in space.uniform_methods().values() if space.params(g) <= self.max_params]
        self.anchor_share = anchor_share if self.anchors else 0.0
        # The few subnets of hardly any parameters would take as many draws as all the others on a log scale.
        self.low = math.log(max(1, smallest, self.max_params // 50))

    def __call__(self, step: int) -> Genome:
        rng = np.random.default_rng([self.seed, step])
        if rng.random() < self.anchor_share:
            return dict(self.anchors[rng.integers(len(self.anchors))])
        size = math.exp(rng.uniform(self.low, math.log(max(1, self.max_params))))
        target = min(max(round(size), self.space.params(self.space.smallest)), self.max_params)
        return self.space.resize(self.space.sample(rng), target, rng, grow=True)


STRATEGIES = {"sizes": SizeSampling, "uniform": UniformSampling}
