"""What the samplers of genomes have in common: one proposal from the history, as an Optuna sampler and without."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import InstanceOf

from glora_search.compat import storage_of, trial_id
from glora_search.files.arguments import Whole, checked_arguments
from glora_search.search.history import History
from glora_search.search.trials import NOTES, ORIGIN
from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code

if TYPE_CHECKING:
    from optuna.study import Study


def distributions(space: BoundSpace) -> dict[str, BaseDistribution]:
    """Every gene of a space as an Optuna distribution."""
    return {gene.name: CategoricalDistribution(gene.choices) for gene in space.genes}


@dataclass(frozen=True)
class Proposal:
    """A genome to evaluate.

    Attributes:
        code: what it is.
        origin: where it comes from, for the report.
        notes: what the sampler wants to find again at the finished trial.
        system: the same, of one of Optuna's own samplers.
    """

    code: Code
    origin: str
    notes: dict[str, Any] = field(default_factory=dict)
    system: dict[str, Any] = field(default_factory=dict)


class GenomeSampler(BaseSampler, abc.ABC):
    """A sampler that draws whole genomes, from the seed, a number and the finished trials alone.

    `search` asks it by `propose`; in a plain ``optuna.Study`` it works as any other sampler. What it is told of a
    search, space and budget included, stands in the history alone, so that one sampler can serve several searches.

    Args:
        space: the bound space.
        max_params: the budget in a plain study; in `search`, its own holds. None is no budget.
        seed: of all draws.
    """

    @checked_arguments()
    def __init__(self, space: InstanceOf[BoundSpace], *, max_params: Whole | None = None, seed: Whole = 0) -> None:
        self.space, self.max_params, self.seed = space, max_params, seed
        self._distributions = distributions(space)
        # By the object: in memory each study has the same number.
        self._histories: WeakKeyDictionary[Study, History] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """The histories stay behind: they are read from the studies anew."""
        return {name: value for name, value in self.__dict__.items() if name != "_histories"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _histories=WeakKeyDictionary())

    @abc.abstractmethod
    def propose(self, history: History, number: int) -> Proposal | None:
        """A genome that fits the budget and is new; None where none was found.

        Args:
            history: the finished trials, with the space and the budget of their search.
            number: of the draw; another one draws another genome.
        """

    def rng(self, number: int) -> np.random.Generator:
        """The random numbers of one draw."""
        return np.random.default_rng([self.seed, number])

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All genes."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """One genome for a plain study.

        Raises:
            RuntimeError: there is no further one.
        """
        history = self._history_of(study)
        proposal = self.propose(history, trial.number)
        if proposal is None:
            raise RuntimeError(f"The space {self.space.name} has no further subnet within the budget.")
        for name, value in ((ORIGIN, proposal.origin), (NOTES, proposal.notes)):
            storage_of(study).set_trial_user_attr(trial_id(trial), name, value)
        for name, value in proposal.system.items():
            storage_of(study).set_trial_system_attr(trial_id(trial), name, value)
        return history.codec.decode(proposal.code)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not used: every gene is drawn together with the others."""
        raise ValueError(f"{param_name} is not a gene of the space {self.space.name}")

    def _history_of(self, study: Study) -> History:
        history = self._histories.get(study)
        if history is None:
            history = History(self.space, max_params=self.max_params, direction=study.directions[0])
            self._histories[study] = history
        known = {trial.number for trial in history.trials}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        finished = study.get_trials(deepcopy=False, states=states)
        history.add(trial for trial in finished if trial.number not in known and trial.params)
        return history
