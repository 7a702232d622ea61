"""The paper's evolutionary search as an Optuna sampler, and Optuna's own samplers by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.trial import FrozenTrial, TrialState

from glora_search.errors import UserError, invalid
from glora_search.space import BoundSpace, Genome

if TYPE_CHECKING:
    from optuna.study import Study

ORIGIN = "origin"
"""Trial attribute: where a genome comes from: a uniform method's name, random, mutation, crossover, or a sampler."""
LOSS = "loss"
"""Trial attribute: the validation loss, which breaks ties of the metric."""


def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """Every gene of a space as an Optuna distribution."""
    return {gene.name: CategoricalDistribution(gene.choices) for gene in space.genes}


def rank_key(trial: FrozenTrial) -> tuple[float, float, int]:
    """Sorts finished trials, best first: the metric, then the loss, then the earlier one."""
    return -float(trial.value or 0.0), float(trial.user_attrs.get(LOSS, 0.0)), trial.number


class EvolutionSampler(BaseGASampler):
    """Evolutionary search as in GLoRA's paper (arXiv 2306.07967, section 3.4 and appendix).

    The first generation is random. Each later one has mutants and crossovers of the best genomes found so far, and
    is filled up at random. A genome over the budget, or one that computes the same as a genome of an earlier trial,
    is drawn anew, so that nothing is evaluated in vain.

    What it draws depends on the seed, on the trial's number and on the finished trials alone.

    Args:
        space: the bound space.
        max_params: the budget; None is no budget.
        population_size: genomes a generation.
        n_parents: the best genomes, of all generations, that become parents.
        n_mutants: mutants a generation: a parent whose genes are redrawn with probability ``mutation_prob``.
        n_crossovers: crossovers a generation: every gene from one of two parents.
        mutation_prob: probability of a gene to be redrawn.
        seed: of all draws.
        max_tries: draws of one kind before it is given up for a random genome, moved into the budget.

    Raises:
        UserError: a number is out of its range.
    """

    def __init__(
        self,
        space: BoundSpace,
        *,
        max_params: int | None = None,
        population_size: int = 50,
        n_parents: int = 10,
        n_mutants: int = 25,
        n_crossovers: int = 25,
        mutation_prob: float = 0.2,
        seed: int = 0,
        max_tries: int = 100,
    ) -> None:
        super().__init__(population_size)
        for name, value, low in (
            ("population_size", population_size, 1),
            ("n_parents", n_parents, 1),
            ("n_mutants", n_mutants, 0),
            ("n_crossovers", n_crossovers, 0),
            ("max_tries", max_tries, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise invalid(f"search.options.{name}", value, f"an int >= {low}")
        if not 0 <= mutation_prob <= 1:
            raise invalid("search.options.mutation_prob", mutation_prob, "a number from 0 to 1")
        if n_mutants + n_crossovers > population_size:
            raise invalid(
                "search.options.n_mutants",
                n_mutants,
                f"with n_crossovers={n_crossovers} at most population_size={population_size} together",
            )
        self.space, self.max_params, self.seed = space, max_params, seed
        self.n_parents, self.n_mutants, self.n_crossovers = n_parents, n_mutants, n_crossovers
        self.mutation_prob, self.max_tries = mutation_prob, max_tries
        self._distributions = distributions(space)
        self._keys: dict[int, Any] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All genes."""
        return self._distributions

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The best trials of all earlier generations, as the paper keeps them."""
        key = self._get_generation_key()
        earlier = [
            trial
            for trial in study._get_trials(deepcopy=False, states=[TrialState.COMPLETE], use_cache=True)
            if trial.system_attrs.get(key, -1) < generation
        ]
        return sorted(earlier, key=rank_key)[: self.n_parents]

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One genome that fits the budget and is new."""
        generation = self.get_trial_generation(study, trial)
        rng = np.random.default_rng([self.seed, trial.number])
        key = self._get_generation_key()
        earlier = [t for t in study._get_trials(deepcopy=False, use_cache=True) if t.number != trial.number]
        slot = sum(t.system_attrs.get(key) == generation and t.state != TrialState.FAIL for t in earlier)
        seen = {self._key(t) for t in earlier if t.params}
        parents = [t.params for t in self.get_parent_population(study, generation)]
        genome, origin = None, "random"
        if parents and slot < self.n_mutants:
            origin = "mutation"
            genome = self._first_new(lambda: self._mutate(parents[rng.integers(len(parents))], rng), seen)
        elif parents and slot < self.n_mutants + self.n_crossovers:
            origin = "crossover"
            genome = self._first_new(lambda: self._cross(parents, rng), seen)
        if genome is None:
            origin = "random"
            genome = self._first_new(lambda: self.space.sample(rng), seen)
        if genome is None:
            genome = self._first_new(lambda: self._fitting(rng), seen)
        study._storage.set_trial_user_attr(trial._trial_id, ORIGIN, origin)
        return self._fitting(rng) if genome is None else genome

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not used: every gene is drawn together with the others."""
        raise ValueError(f"{param_name} is not a gene of the space {self.space.name}")

    def _key(self, trial: FrozenTrial) -> Any:
        if trial.number not in self._keys:
            self._keys[trial.number] = self.space.key(trial.params)
        return self._keys[trial.number]

    def _first_new(self, draw: Any, seen: set[Any]) -> Genome | None:
        for _ in range(self.max_tries):
            genome: Genome = draw()
            if self.max_params is not None and self.space.params(genome) > self.max_params:
                continue
            if self.space.key(genome) not in seen:
                return genome
        return None

    def _mutate(self, parent: Mapping[str, Any], rng: np.random.Generator) -> Genome:
        redrawn = self.space.sample(rng)
        return {name: redrawn[name] if rng.random() < self.mutation_prob else parent[name] for name in redrawn}

    @staticmethod
    def _cross(parents: list[dict[str, Any]], rng: np.random.Generator) -> Genome:
        first, second = (parents[rng.integers(len(parents))] for _ in range(2))
        return {name: (first if rng.random() < 0.5 else second)[name] for name in first}

    def _fitting(self, rng: np.random.Generator) -> Genome:
        genome = self.space.sample(rng)
        return genome if self.max_params is None else self.space.resize(genome, self.max_params, rng)


def make_sampler(
    name: str,
    space: BoundSpace,
    *,
    max_params: int | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
) -> BaseSampler:
    """A sampler by its name in a recipe.

    Args:
        name: ``evolution``, ``nsga2``, ``tpe`` or ``random``.
        options: keyword arguments of the sampler's class.

    Raises:
        UserError: an unknown name or option.
    """
    makers: dict[str, Any] = {
        "evolution": lambda **kw: EvolutionSampler(space, max_params=max_params, seed=seed, **kw),
        "nsga2": lambda **kw: optuna.samplers.NSGAIISampler(seed=seed, **kw),
        "tpe": lambda **kw: optuna.samplers.TPESampler(seed=seed, **kw),
        "random": lambda **kw: optuna.samplers.RandomSampler(seed=seed, **kw),
    }
    if name not in makers:
        raise invalid("search.sampler", name, makers)
    try:
        return makers[name](**(options or {}))
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise invalid("search.options", dict(options or {}), f"what the {name} sampler takes ({error})") from None
