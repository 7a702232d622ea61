"""A race: all finalists train to a rung, the better half goes on, until a few are trained to the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from glora_search.finals.finalists import Finalist
from glora_search.finals.rungs import SHARES, Standing, best_first, survivors
from glora_search.search.trials import METRIC, PARAMS

STUDY_NAME = "finals"
BOTH = (False, True)
RATES = (1e-300, 1e300)
"""Any factor of a learning rate, as a distribution of Optuna's, which has ends."""


@dataclass(frozen=True)
class Result:
    """How a race ended.

    Attributes:
        standings: finalist -> how far it came.
        last: who was never dropped, best first.
        field: all finalists, those that joined included.
    """

    standings: dict[str, Standing]
    last: list[str]
    field: list[Finalist]

    @property
    def losses(self) -> dict[str, float]:
        """Finalist -> its lowest validation loss."""
        return {name: standing.loss for name, standing in self.standings.items()}

    @property
    def steps(self) -> int:
        """All optimizer steps that were trained."""
        return sum(standing.step for standing in self.standings.values())


def race(
    field: Sequence[Finalist],
    train_to: Callable[[Sequence[Finalist], int], Mapping[str, Standing]],
    steps: int,
    *,
    kept: Callable[[Sequence[Finalist], Mapping[str, float]], Sequence[str]] = lambda field, losses: (),
    joining: Callable[[Sequence[Finalist], Mapping[str, float]], Finalist | None] = lambda field, losses: None,
    shares: Sequence[float] = SHARES,
    study: optuna.Study | None = None,
) -> Result:
    """Train the field rung by rung.

    Args:
        train_to: trains finalists on to a step: name -> standing. What is there already is not trained again, and one
            that has ended, since it overfits, competes with what it has reached.
        steps: of a whole training.
        kept: finalists, and their losses at a rung -> who is not dropped there.
        joining: finalists, and their losses at the first rung -> another one that trains to this rung too; None where
            nobody else joins. The places at the next rung are as many as without those that join.
        shares: the rungs.
        study: where each finalist becomes a trial: ``PRUNED`` at the rung that it did not pass, or ``COMPLETE``.
    """
    named = {one.name: one for one in field}
    alive, places, standings = list(named), len(named), dict[str, Standing]()
    for share in shares if field else ():
        left = [named[name] for name in alive]
        while left:
            standings |= train_to(left, round(share * steps))
            losses = {name: standings[name].loss for name in alive}
            another = joining([*named.values()], losses) if share == shares[0] else None
            left = [] if another is None else [another]
            named |= {one.name: one for one in left}
            alive += [one.name for one in left]
        losses = {name: standings[name].loss for name in alive}
        places, finalists = math.ceil(places / 2), [named[name] for name in alive]
        going_on = best_first(losses) if share == shares[-1] else survivors(losses, places, kept(finalists, losses))
        for name in alive:
            if name not in going_on:
                _record(study, named[name], standings[name], TrialState.PRUNED)
        alive = going_on
    for name in alive:
        _record(study, named[name], standings[name], TrialState.COMPLETE)
    return Result(standings, alive, [*named.values()])


def _record(study: optuna.Study | None, finalist: Finalist, reached: Standing, state: TrialState) -> None:
    """Write a finalist's trial, unless an interrupted race has done so."""
    if study is None or any(trial.user_attrs.get("name") == finalist.name for trial in study.get_trials(False)):
        return
    now = datetime.now()
    study.add_trial(
        FrozenTrial(
            number=0,
            trial_id=-1,
            state=state,
            value=reached.loss if state == TrialState.COMPLETE else None,
            datetime_start=now,
            datetime_complete=now,
            params={"rate": finalist.rate, "taught": finalist.taught},
            distributions={"rate": FloatDistribution(*RATES, log=True), "taught": CategoricalDistribution(BOTH)},
            user_attrs={
                "name": finalist.name,
                "method": finalist.method,
                METRIC: reached.metric,
                "loss": reached.loss,
                PARAMS: finalist.params,
                "best_step": reached.best_step,
            },
            system_attrs={},
            intermediate_values=dict(reached.losses),
        )
    )
