"""A space, and evaluators without a model."""

from __future__ import annotations

import pytest

from glora_search.search import Evaluation
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer


@pytest.fixture
def space():
    kinds = {"A": ["vector", "none"], "B": ["lora", "none"], "E": ["vector", "none"]}
    return BoundSpace([SpaceLayer(f"l{index}.query", 8, 8, True, kinds, [1, 2]) for index in range(4)])


class Evaluator:
    """Scores a genome by its parameters and remembers what it was asked."""

    def __init__(self, space, stop_after=None):
        self.space, self.genomes, self.stop_after = space, [], stop_after

    def __call__(self, genome):
        if self.stop_after is not None and len(self.genomes) >= self.stop_after:
            raise KeyboardInterrupt
        self.genomes.append(dict(genome))
        indexes = [gene.choices.index(genome[gene.name]) for gene in self.space.genes]
        return Evaluation(metric=round(self.space.params(genome) / 1000, 2), loss=sum(indexes))


@pytest.fixture
def evaluator(space):
    """``evaluator(stop_after=None)``: a new `Evaluator` of the space."""
    return lambda **options: Evaluator(space, **options)
