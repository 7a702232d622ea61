"""Which subnets a training step trains.

A strategy is a function of the step alone (and of its seed): every rank of a distributed run draws the same subnets,
and a resumed run goes on with the same sequence.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import InstanceOf

from glora_search.errors import UserError, invalid
from glora_search.files.arguments import Share, Whole, checked_arguments, keyed
from glora_search.files.plugins import import_class, options_of
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome


class Sampling:
    """Step -> the subnets that it trains, in one optimizer step.

    For a strategy of your own, subclass this and name it by its import path in the recipe. It must draw from
    ``self.rng(step)``, or otherwise be a function of ``self.seed`` and the step alone.

    Args:
        space: the bound space.
        seed: of the sequence.
        max_params: the search's budget; None is the space's largest size.

    Attributes:
        distill: whether all subnets of a step but the first learn from the first one's outputs, not from the labels.
    """

    distill: bool = False

    @checked_arguments()
    def __init__(self, space: InstanceOf[BoundSpace], *, seed: Whole = 0, max_params: Whole | None = None) -> None:
        self.space, self.seed = space, seed
        self.min_params, largest = space.params(space.smallest), space.params(space.largest)
        self.max_params = largest if max_params is None else min(max(max_params, self.min_params), largest)

    def rng(self, step: int) -> np.random.Generator:
        """The random numbers of a step."""
        return np.random.default_rng([self.seed, step])

    def __call__(self, step: int) -> list[Genome]:
        raise NotImplementedError


class UniformSampling(Sampling):
    """Every gene drawn uniformly, whatever the budget, as in the paper (arXiv 2306.07967, section 3.4)."""

    def __call__(self, step: int) -> list[Genome]:
        return [self.space.sample(self.rng(step))]


class SizeSampling(Sampling):
    """Parameter counts drawn log-uniformly, and the space's uniform methods in a share of the steps.

    Uniform draws are nearly all of one middle size and hardly ever a simple method; this one trains the whole range
    that a search can look at.

    Args:
        max_params: the largest size to train; None is the space's largest.
        anchor_share: the share of the steps that train a uniform method which fits.
    """

    @checked_arguments()
    def __init__(
        self,
        space: InstanceOf[BoundSpace],
        *,
        seed: Whole = 0,
        max_params: Whole | None = None,
        anchor_share: Share = 0.25,
    ) -> None:
        super().__init__(space, seed=seed, max_params=max_params)
        self.anchors = [g for g in space.uniform_methods().values() if space.params(g) <= self.max_params]
        self.anchor_share = anchor_share if self.anchors else 0.0
        # The few subnets of hardly any parameters would take as many draws as all the others on a log scale.
        self.low = math.log(max(1, self.min_params, self.max_params // 50))

    def draw(self, rng: np.random.Generator) -> Genome:
        """One subnet."""
        if rng.random() < self.anchor_share:
            return dict(self.anchors[rng.integers(len(self.anchors))])
        size = math.exp(rng.uniform(self.low, math.log(max(1, self.max_params))))
        target = min(max(round(size), self.min_params), self.max_params)
        return self.space.resize(self.space.sample(rng), target, rng, grow=True)

    def __call__(self, step: int) -> list[Genome]:
        return [self.draw(self.rng(step))]


class FairSampling(Sampling):
    """Every choice of every gene trained equally often, whatever the budget.

    The choices of a gene come in windows: one with m choices takes each of them once in every m steps, in an order
    that is drawn anew for every window and gene.

    Source: strict fairness, FairNAS (arXiv 1907.01845, section 3.2), with one subnet an optimizer step.
    """

    @checked_arguments()
    def __init__(self, space: InstanceOf[BoundSpace], *, seed: Whole = 0, max_params: Whole | None = None) -> None:
        super().__init__(space, seed=seed, max_params=max_params)
        self._sizes = sorted({len(gene.choices) for gene in space.genes})

    def __call__(self, step: int) -> list[Genome]:
        genome: Genome = {}
        for size in self._sizes:
            genes = [gene for gene in self.space.genes if len(gene.choices) == size]
            window, place = divmod(step, size)
            orders = np.tile(np.arange(size), (len(genes), 1))
            orders = np.random.default_rng([self.seed, size, window]).permuted(orders, axis=1)
            genome |= {gene.name: gene.choices[order[place]] for gene, order in zip(genes, orders, strict=True)}
        return [genome]


class SandwichSampling(Sampling):
    """The largest subnet, random ones drawn as `SizeSampling` does, and the smallest, in every step.

    A step costs as much as that many steps of one subnet.

    Args:
        max_params: the largest subnet is cut down to it, differently in every step.
        random: how many random ones.
        distill: the others learn from the largest one's outputs, not from the labels (in-place distillation).

    Source: the sandwich rule (arXiv 1903.05134, sections 3.1 and 3.2).
    """

    @checked_arguments()
    def __init__(
        self,
        space: InstanceOf[BoundSpace],
        *,
        seed: Whole = 0,
        max_params: Whole | None = None,
        random: Whole = 2,
        distill: bool = False,
    ) -> None:
        super().__init__(space, seed=seed, max_params=max_params)
        self.random, self.distill = random, distill
        self._sizes = SizeSampling(space, seed=seed, max_params=max_params)

    def __call__(self, step: int) -> list[Genome]:
        rng = self.rng(step)
        largest = self.space.resize(self.space.largest, self.max_params, rng, grow=True)
        return [largest, *(self._sizes.draw(rng) for _ in range(self.random)), dict(self.space.smallest)]


class BudgetSampling(Sampling):
    """Subnets near the search budget: what a search under that budget looks at most.

    Args:
        max_params: the budget.
        spread: sizes are drawn uniformly from this share of the budget below it.
    """

    @checked_arguments()
    def __init__(
        self, space: InstanceOf[BoundSpace], *, seed: Whole = 0, max_params: Whole | None = None, spread: Share = 0.25
    ) -> None:
        super().__init__(space, seed=seed, max_params=max_params)
        self.spread = spread

    def __call__(self, step: int) -> list[Genome]:
        rng = self.rng(step)
        size = self.max_params * (1 - self.spread * rng.random())
        target = max(round(size), self.min_params)
        return [self.space.resize(self.space.sample(rng), target, rng, grow=True)]


STRATEGIES: dict[str, type[Sampling]] = {
    "uniform": UniformSampling,
    "sizes": SizeSampling,
    "fair": FairSampling,
    "sandwich": SandwichSampling,
    "budget": BudgetSampling,
}


def make_sampling(
    name: str,
    space: BoundSpace,
    *,
    seed: int = 0,
    max_params: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Sampling:
    """A strategy by its name in a recipe.

    Args:
        name: one of `STRATEGIES`, or the import path of a subclass of `Sampling`.
        options: further keyword arguments of the class.

    Raises:
        UserError: an unknown name or option.
    """
    strategy: Any = STRATEGIES[name] if name in STRATEGIES else _imported(name)
    own = {"space": space, "seed": seed, "max_params": max_params}
    try:
        return strategy(**own, **(options or {}))
    except UserError as error:
        names = inspect.signature(strategy).parameters.keys() - own
        raise keyed(error, "supernet.sampling_options", names) from None
    except (TypeError, ValueError) as error:
        takes = options_of(strategy, own)
        expected = f"what {strategy.__name__} takes: {takes} ({error})"
        raise invalid("supernet.sampling_options", dict(options or {}), expected) from None


def _imported(name: str) -> type[Sampling]:
    allowed = f"one of {', '.join(STRATEGIES)}, or the import path of a subclass of glora_search.supernet.Sampling"
    return import_class(name, Sampling, key="supernet.sampling", allowed=allowed)
