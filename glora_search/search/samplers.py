"""Samplers by name: our own, Optuna's, and any other by its import path."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.samplers import BaseGASampler, BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from glora_search.compat import trial_id
from glora_search.errors import UserError, invalid
from glora_search.files.arguments import keyed
from glora_search.files.plugins import import_class, options_of
from glora_search.search.evolution import EvolutionSampler, PaperSampler
from glora_search.search.evolution.base import GenomeSampler, Proposal, distributions
from glora_search.search.evolution.start import UniformMethods
from glora_search.search.evolution.variation import resized
from glora_search.search.history import History
from glora_search.search.trials import KEY
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code

OWN: dict[str, type[GenomeSampler]] = {"evolution": EvolutionSampler, "paper": PaperSampler}
OPTUNAS: dict[str, type[BaseSampler]] = {
    "nsga2": optuna.samplers.NSGAIISampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}
NAMES = (*OWN, *OPTUNAS)
MAX_TRIES = 200


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
        name: ``evolution``, ``paper``, ``nsga2``, ``tpe``, ``random``, or the import path of an Optuna sampler's
            class, e.g. ``optuna.samplers.GPSampler``.
        options: keyword arguments of the sampler's class.

    Raises:
        UserError: an unknown name or option.
    """
    cls: Any = OWN.get(name) or OPTUNAS.get(name) or _imported(name)
    given = dict(options or {})
    own = {"space": space, "max_params": max_params} if issubclass(cls, GenomeSampler) else {}
    if "seed" in inspect.signature(cls).parameters:
        own["seed"] = seed
    try:
        return cls(**own, **given)
    except UserError as error:
        raise keyed(error, "search.options", inspect.signature(cls).parameters.keys() - own) from None
    except (TypeError, ValueError) as error:
        takes = f"what the {name} sampler takes: {options_of(cls, own)} ({error})"
        raise invalid("search.options", given, takes) from None


def _imported(path: str) -> type[BaseSampler]:
    allowed = f"one of {', '.join(map(repr, NAMES))}, or the import path of an Optuna sampler"
    return import_class(path, BaseSampler, key="search.sampler", allowed=allowed)


class Proposer(Protocol):
    """Where the search takes its genomes from."""

    def propose(self, history: History, number: int) -> Proposal | None: ...

    def done(self, trial: FrozenTrial | None) -> None:
        """The trial of the last proposal has finished; None where it was not evaluated."""


class OwnProposer:
    """Proposals of a sampler of whole genomes."""

    def __init__(self, sampler: GenomeSampler) -> None:
        self.propose = sampler.propose

    def done(self, trial: FrozenTrial | None) -> None:
        """Nothing to keep: the history has it."""


class OptunaProposer:
    """Proposals of any Optuna sampler, asked over a study in memory.

    Storages take seconds to be asked gene by gene; memory takes milliseconds. The uniform methods come first. A
    proposal that is over the budget or not new is replaced by a neighbour of it.

    Args:
        sampler: a name, made anew for each trial with a seed of its own, so that a continued search draws what one
            that never stopped would have drawn; or a sampler, which is used as it is.
        directions: of the study's values.
        options: for `make_sampler`.
    """

    def __init__(
        self,
        sampler: str | BaseSampler,
        space: BoundSpace,
        *,
        directions: list[StudyDirection],
        seed: int,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.space, self.seed, self.options = space, seed, options
        self.name = sampler if sampler in OPTUNAS else None
        made = make_sampler(sampler, space, seed=seed, options=options) if isinstance(sampler, str) else sampler
        self.label = self.name or type(made).__name__
        self.storage = optuna.storages.InMemoryStorage()
        names = [direction.name.lower() for direction in directions]
        self.study = optuna.create_study(storage=self.storage, sampler=made, directions=names)
        self.genes = distributions(space)
        self.uniform = UniformMethods()
        self.study.stop = self._stop  # type: ignore[method-assign]
        self._stopped = False
        self._asked: optuna.Trial | None = None
        self._own: set[str] = set()
        self._read = 0

    def propose(self, history: History, number: int) -> Proposal | None:
        """Ask the sampler, and make its genome one that can be evaluated; None where it has stopped the search."""
        if self._stopped:
            return None
        for trial in history.trials[self._read :]:
            if trial.user_attrs.get(KEY) not in self._own:
                self.study.add_trial(trial)
        self._read = len(history)
        if self.name is not None:
            seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
            self.study.sampler = make_sampler(self.name, self.space, seed=seed, options=self.options)
        trial = self.study.ask()
        self._asked = trial
        if isinstance(self.study.sampler, BaseGASampler):
            # Every trial has all genes; a new sampler would find that out by reading all trials.
            self.study.sampler.infer_relative_search_space = lambda study, trial: self.genes  # type: ignore[method-assign]
            # The parents come in another order where they are selected than where they are remembered; from now on
            # they are remembered, in a continued search as in one that never stopped.
            sampler, frozen = self.study.sampler, self.storage.get_trial(trial_id(trial))
            sampler.get_parent_population(self.study, sampler.get_trial_generation(self.study, frozen))
        genome = dict(trial.relative_params)
        method = self.uniform(history)
        code: Code | None
        if method is not None:
            origin, code = method
        else:
            origin = self.label
            asked = trial_id(trial)
            for name, gene in self.genes.items():
                if name not in genome:
                    frozen = self.storage.get_trial(asked)  # with the genes drawn before, which some samplers read
                    genome[name] = self.study.sampler.sample_independent(self.study, frozen, name, gene)
                self.storage.set_trial_param(asked, name, gene.to_internal_repr(genome[name]), gene)
            code = _made_new(history, history.codec.encode(genome), np.random.default_rng([self.seed, number, 1]))
        if code is None:
            self.done(None)
            return None
        return Proposal(code, origin, system=self.storage.get_trial_system_attrs(trial_id(trial)))

    def _stop(self) -> None:
        """A sampler has nothing further to propose (a grid's end); Optuna's own takes it from an objective only."""
        self._stopped = True

    def done(self, trial: FrozenTrial | None) -> None:
        """Tell the study what was evaluated, which may be another genome than the proposed one."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        if trial is None:
            self.study.tell(asked, state=TrialState.FAIL)
            return
        number = trial_id(asked)
        for name, gene in self.genes.items():
            self.storage.set_trial_param(number, name, gene.to_internal_repr(trial.params[name]), gene)
        for name, value in trial.user_attrs.items():
            self.storage.set_trial_user_attr(number, name, value)
        for step, value in trial.intermediate_values.items():
            self.storage.set_trial_intermediate_value(number, step, value)
        self._own.add(trial.user_attrs[KEY])
        self.study.tell(asked, trial.values, state=trial.state)


def _made_new(history: History, code: Code, rng: np.random.Generator) -> Code | None:
    """The code itself where it can be evaluated, else a neighbour of it, else any; None if none was found."""
    codec = history.codec
    for attempt in range(MAX_TRIES):
        candidate = code
        if attempt:
            # Further and further away, until it is a genome drawn at random.
            redrawn = history.sample(rng)
            layers = rng.permutation(len(code))[: max(1, attempt * len(code) // (MAX_TRIES // 2))]
            candidate = code.copy()
            candidate[layers] = redrawn[layers]
        candidate = resized(codec, candidate, history.max_params, rng)
        if history.fits(candidate) and history.is_new(candidate):
            return candidate
    return next(history.rest(), None)
