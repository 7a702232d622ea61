"""What the samplers of genomes have in common: one proposal from the history, as an Optuna sampler and without."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from glora_search.errors import invalid
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

    `search` asks it by `propose`; in a plain ``optuna.Study`` it works as any other sampler.

    Args:
        space: the bound space.
        max_params: the budget; None is no budget.
        seed: of all draws.
    """

    def __init__(self, space: BoundSpace, *, max_params: int | None = None, seed: int = 0) -> None:
        self.space, self.max_params, self.seed = space, max_params, seed
        self._distributions = distributions(space)
        self._history: tuple[int, History] | None = None

    @abc.abstractmethod
    def propose(self, history: History, number: int) -> Proposal | None:
        """A genome that fits the budget and is new; None where none was found.

        Args:
            history: the finished trials.
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
        proposal = self.propose(self._history_of(study), trial.number)
        if proposal is None:
            raise RuntimeError(f"The space {self.space.name} has no further subnet within the budget.")
        for name, value in ((ORIGIN, proposal.origin), (NOTES, proposal.notes)):
            study._storage.set_trial_user_attr(trial._trial_id, name, value)
        for name, value in proposal.system.items():
            study._storage.set_trial_system_attr(trial._trial_id, name, value)
        assert self._history is not None
        return self._history[1].codec.decode(proposal.code)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Not used: every gene is drawn together with the others."""
        raise ValueError(f"{param_name} is not a gene of the space {self.space.name}")

    def _history_of(self, study: Study) -> History:
        if self._history is None or self._history[0] != study._study_id:
            history = History(self.space, max_params=self.max_params, direction=study.directions[0])
            self._history = (study._study_id, history)
        history = self._history[1]
        known = {trial.number for trial in history.trials}
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        finished = study.get_trials(deepcopy=False, states=states)
        history.add(trial for trial in finished if trial.number not in known and trial.params)
        return history


def check_int(name: str, value: Any, low: int) -> None:
    """Refuse an option that is no whole number, or too low.

    Raises:
        UserError: names the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise invalid(f"search.options.{name}", value, f"an int >= {low}")


def check_share(name: str, value: Any) -> None:
    """Refuse an option that is no number from 0 to 1.

    Raises:
        UserError: names the option.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise invalid(f"search.options.{name}", value, "a number from 0 to 1")
