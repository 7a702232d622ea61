"""The evolutionary search of GLoRA's paper."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseGASampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import InstanceOf

from glora_search.compat import generation_key
from glora_search.errors import invalid
from glora_search.files.arguments import Count, Share, Whole, checked_arguments
from glora_search.search.evolution.base import GenomeSampler, Proposal
from glora_search.search.history import History
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code

if TYPE_CHECKING:
    from optuna.study import Study

GENERATION = "generation"


class PaperSampler(GenomeSampler, BaseGASampler):
    """Evolutionary search as in GLoRA's paper (arXiv 2306.07967, section 3.4 and appendix), an Optuna GA sampler.

    The first generation is random. Each later one has mutants and crossovers of the best genomes found so far, and
    is filled up at random. A genome over the budget, or one that computes the same as a genome of an earlier trial,
    is drawn anew, so that nothing is evaluated in vain.

    Args:
        space: the bound space.
        max_params: the budget in a plain study; in `search`, its own holds. None is no budget.
        population_size: genomes a generation.
        n_parents: the best genomes, of all generations, that become parents.
        n_mutants: mutants a generation: a parent whose genes are redrawn with probability ``mutation_prob``.
        n_crossovers: crossovers a generation: every gene from one of two parents.
        mutation_prob: probability of a gene to be redrawn.
        seed: of all draws.
        max_tries: draws of one kind before it is given up for a random genome, moved into the budget.

    Raises:
        UserError: an argument is out of its range.
    """

    @checked_arguments()
    def __init__(
        self,
        space: InstanceOf[BoundSpace],
        *,
        max_params: Whole | None = None,
        population_size: Count = 50,
        n_parents: Count = 10,
        n_mutants: Whole = 25,
        n_crossovers: Whole = 25,
        mutation_prob: Share = 0.2,
        seed: Whole = 0,
        max_tries: Count = 100,
    ) -> None:
        GenomeSampler.__init__(self, space, max_params=max_params, seed=seed)
        BaseGASampler.__init__(self, population_size)
        if n_mutants + n_crossovers > population_size:
            together = f"with n_crossovers={n_crossovers} at most population_size={population_size} together"
            raise invalid("n_mutants", n_mutants, together)
        self.n_parents = n_parents
        self.n_mutants, self.n_crossovers = n_mutants, n_crossovers
        self.mutation_prob, self.max_tries = mutation_prob, max_tries

    def propose(self, history: History, number: int) -> Proposal | None:
        """The next genome of the generation that is being filled."""
        rng = self.rng(number)
        generation, slot = self._place(history)
        place: dict[str, Any] = {"notes": {GENERATION: generation}, "system": {generation_key(self): generation}}
        parents = self.select_parents(history, generation)
        if parents:
            if slot < self.n_mutants:
                code = self._first(history, lambda: self._mutate(parents[rng.integers(len(parents))], rng, history))
                if code is not None:
                    return Proposal(code, "mutation", **place)
            elif slot < self.n_mutants + self.n_crossovers:
                code = self._first(history, lambda: self._cross(parents, rng, history))
                if code is not None:
                    return Proposal(code, "crossover", **place)
        code = self._first(history, lambda: history.sample(rng))
        if code is None:
            code = self._first(history, lambda: self._fitting(rng, history))
        if code is None:
            code = next(history.rest(), None)
        return None if code is None else Proposal(code, "random", **place)

    def _place(self, history: History) -> tuple[int, int]:
        """The generation of the next trial and how many it has; failed trials do not count."""
        counts: dict[int, int] = {}
        for position, trial in enumerate(history.trials):
            own = history.notes(position).get(GENERATION, 0)
            counts[own] = counts.get(own, 0) + (trial.state != TrialState.FAIL)
        generation = max(counts, default=0)
        if counts.get(generation, 0) >= (self.population_size or 0):
            generation += 1
        return generation, counts.get(generation, 0) + len(history.pending)

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation as trials, see `select_parents`."""
        history = self._history_of(study)
        return [history.trials[position] for position in self._best_before(history, generation)]

    def select_parents(self, history: History, generation: int) -> list[Code]:
        """The best genomes of all earlier generations; none before the first one is full."""
        return [history.codes[position] for position in self._best_before(history, generation)]

    def _best_before(self, history: History, generation: int) -> list[int]:
        ranked = (p for p in history.ranking() if history.notes(p).get(GENERATION, 0) < generation)
        return list(itertools.islice(ranked, self.n_parents))

    def _first(self, history: History, draw: Callable[[], Code]) -> Code | None:
        for _ in range(self.max_tries):
            code = draw()
            if history.fits(code) and history.is_new(code):
                return code
        return None

    def _mutate(self, parent: Code, rng: np.random.Generator, history: History) -> Code:
        old, new = history.codec.decode(parent), history.space.sample(rng)
        redrawn = rng.random(len(new)) < self.mutation_prob
        return history.codec.encode(
            {name: new[name] if own else old[name] for name, own in zip(new, redrawn, strict=True)}
        )

    def _cross(self, parents: list[Code], rng: np.random.Generator, history: History) -> Code:
        first, second = (history.codec.decode(parents[rng.integers(len(parents))]) for _ in range(2))
        own = rng.random(len(first)) < 0.5
        return history.codec.encode(
            {name: (first if mine else second)[name] for name, mine in zip(first, own, strict=True)}
        )

    def _fitting(self, rng: np.random.Generator, history: History) -> Code:
        genome = history.space.sample(rng)
        if history.max_params is not None:
            genome = history.space.resize(genome, history.max_params, rng)
        return history.codec.encode(genome)
