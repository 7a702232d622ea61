"""The default evolution: its steps are objects that can be swapped."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from pydantic import InstanceOf

from glora_search.files.arguments import Amount, Count, Share, Whole, checked_arguments
from glora_search.search.evolution.base import GenomeSampler, Proposal
from glora_search.search.evolution.selection import Tournament
from glora_search.search.evolution.start import AnySize, UniformMethods
from glora_search.search.evolution.surrogate import Fitted, Surrogate
from glora_search.search.evolution.variation import Changes, GiveAndTake, LayerCrossover
from glora_search.search.history import History
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code, Codec


class EvolutionSampler(GenomeSampler):
    """Evolution in small moves that keep near the budget, guided by what the trials so far say about each gene.

    The uniform methods come first, then random genomes of all sizes. From then on every proposal is the most
    promising of a pool of mutants and crossovers of the best genomes; there are no generations, so that workers never
    wait for each other. `docs/search.md` compares it with the paper's.

    Args:
        space: the bound space.
        max_params: the budget in a plain study; in `search`, its own holds. None is no budget.
        seed: of all draws.
        n_random: random genomes after the uniform methods.
        n_parents: the best genomes that can become parents.
        pool: candidates a proposal, of which the most promising one is taken; 1 turns the learning off.
        rounds: how often the most promising candidates are mutated in turn before one is taken.
        boldness: how much a candidate gains by being unlike what is known, in standard deviations at most.
        crossover_prob: share of the candidates that are crossovers.
        random_prob: share of the proposals that are a random candidate of the pool.
        changes: mean number of genes that a mutation changes first, 1 or more.
        start, mutate, cross, select, surrogate: the steps, if others than the above are wanted.

    Raises:
        UserError: an argument is out of its range, or no step.
    """

    @checked_arguments()
    def __init__(
        self,
        space: InstanceOf[BoundSpace],
        *,
        max_params: Whole | None = None,
        seed: Whole = 0,
        n_random: Whole = 10,
        n_parents: Count = 20,
        pool: Count = 24,
        rounds: Whole = 4,
        boldness: Amount = 1.0,
        crossover_prob: Share = 0.25,
        random_prob: Share = 0.1,
        changes: Changes = 2.0,
        start: Callable[[History, np.random.Generator], Code] | None = None,
        mutate: Callable[[Codec, Code, int | None, np.random.Generator], Code] | None = None,
        cross: Callable[[Codec, Code, Code, int | None, np.random.Generator], Code] | None = None,
        select: Callable[[History, np.random.Generator], Code] | None = None,
        surrogate: InstanceOf[Surrogate] | None = None,
    ) -> None:
        super().__init__(space, max_params=max_params, seed=seed)
        self.n_random, self.pool, self.rounds, self.boldness = n_random, pool, rounds, boldness
        self.crossover_prob, self.random_prob = crossover_prob, random_prob
        self.uniform = UniformMethods()
        self.start = start or AnySize()
        self.mutate = mutate or GiveAndTake(changes)
        self.cross = cross or LayerCrossover()
        self.select = select or Tournament(n_parents)
        self.surrogate = surrogate or Surrogate()

    def propose(self, history: History, number: int) -> Proposal | None:
        """The next uniform method, or a random genome, or the most promising candidate."""
        method = self.uniform(history)
        if method is not None:
            return Proposal(method[1], method[0])
        rng = self.rng(number)
        drawn = sum(history.notes(position).get("random", False) for position in range(len(history)))
        if drawn < self.n_random or not history.whole:
            code = self._first_new(history, rng)
            return None if code is None else Proposal(code, "random", {"random": True})
        candidates = self._candidates(history, rng)
        if not candidates:
            code = self._first_new(history, rng)
            return None if code is None else Proposal(code, "random")
        code, origin = candidates[rng.integers(len(candidates))]
        if self.pool > 1 and rng.random() >= self.random_prob:
            fitted = self.surrogate.fit(history)
            if fitted is not None:
                code, origin = self._most_promising(fitted, history, candidates, rng)
        return Proposal(code, origin)

    def note(self, trials: int) -> str | None:
        """What a search of so many trials is mostly spent on, where that is its start."""
        uniform = len(self.uniform.within(self.space, self.max_params))
        start = uniform + self.n_random
        if trials >= 2 * start:
            return None
        own, random = max(0, trials - start), min(self.n_random, max(0, trials - uniform))
        return (
            f"of {trials} trials, {min(uniform, trials)} are uniform methods, {random} are random subnets, and {own} "
            f"are chosen by the evolution; with {2 * start} trials or more, it chooses at least half"
        )

    def _candidates(self, history: History, rng: np.random.Generator) -> list[tuple[Code, str]]:
        """Children of the best genomes: new, within the budget, each once."""

        def child() -> tuple[Code, str]:
            parent = self.select(history, rng)
            if rng.random() < self.crossover_prob:
                other = self.select(history, rng)
                return self.cross(history.codec, parent, other, history.max_params, rng), "crossover"
            return self.mutate(history.codec, parent, history.max_params, rng), "mutation"

        return self._pool(history, child)

    def _pool(self, history: History, child: Callable[[], tuple[Code, str]]) -> list[tuple[Code, str]]:
        found: dict[bytes, tuple[Code, str]] = {}
        for _ in range(2 * self.pool if len(history.codec.free) else 0):
            if len(found) >= self.pool:
                break
            code, origin = child()
            if code.tobytes() not in found and history.fits(code) and history.is_new(code):
                found[code.tobytes()] = (code, origin)
        return list(found.values())

    def _most_promising(
        self, fitted: Fitted, history: History, candidates: list[tuple[Code, str]], rng: np.random.Generator
    ) -> tuple[Code, str]:
        """The candidate that promises most, after rounds of mutating those that do."""
        scores = fitted.mean([code for code, _ in candidates])
        for _ in range(self.rounds):
            best = np.argsort(scores, kind="stable")[: max(1, self.pool // 4)]
            kept = [candidates[position] for position in best]

            def child(kept: list[tuple[Code, str]] = kept) -> tuple[Code, str]:
                code, origin = kept[int(rng.random() * len(kept))]
                return self.mutate(history.codec, code, history.max_params, rng), origin

            new = self._pool(history, child)
            if not new:
                break
            candidates = kept + new
            scores = np.concatenate([scores[best], fitted.mean([code for code, _ in new])])
        spread = fitted.spread([code for code, _ in candidates])
        return candidates[int((scores - rng.uniform(0, self.boldness) * spread).argmin())]

    def _first_new(self, history: History, rng: np.random.Generator) -> Code | None:
        drawn = filter(history.is_new, self._draws(history, rng))
        return next(itertools.chain(drawn, history.rest()), None)

    def _draws(self, history: History, rng: np.random.Generator) -> Iterator[Code]:
        for _ in range(50):
            yield self.start(history, rng)
        if len(history.codec.free):
            # A small or a nearly used up space: step away from what was there, further each time.
            code = self.start(history, rng)
            for _ in range(200):
                code = self.mutate(history.codec, code, history.max_params, rng)
                if history.fits(code):
                    yield code
