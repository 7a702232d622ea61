"""What a finished trial of a search holds, which of two is better, and the best of all."""

from __future__ import annotations

import math

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from glora_search.errors import UserError
from glora_search.ranking import rank_key

STUDY_NAME = "search"
"""The search's study in a run's own journal."""
LOSS = "loss"
"""Trial attribute: the validation loss, which breaks ties of the score."""
METRIC = "metric"
"""Trial attribute: the task's metric."""
PARAMS = "params"
"""Trial attribute: the adapter's parameters."""
ORIGIN = "origin"
"""Trial attribute: where a genome comes from: a uniform method's name, random, mutation, crossover, or a sampler."""
KEY = "key"
"""Trial attribute: the name of what the genome computes, see `space.codes.key_of`."""
FAILED = "failed"
"""Trial attribute: why a trial has no value."""
NOTES = "notes"
"""Trial attribute: what the sampler wants to find again at its trials."""
EXHAUSTED = "exhausted"
"""Of a study: no further subnet within the budget was found."""


def trial_key(trial: FrozenTrial, direction: StudyDirection = StudyDirection.MAXIMIZE) -> tuple[float, float, int]:
    """Sorts finished trials, best first: the score, then the loss, then the earlier one."""
    better = "maximize" if direction == StudyDirection.MAXIMIZE else "minimize"
    loss = trial.user_attrs.get(LOSS, 0.0)
    return *rank_key(trial.values[0], loss, direction=better), trial.number


def best_trial(study: optuna.Study) -> FrozenTrial:
    """The finished trial with the best score; ties go to the lower loss, then to the earlier one.

    Raises:
        UserError: no trial has finished; the message has the reason of the last one.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not finished:
        reason = trials[-1].user_attrs.get(FAILED) if trials else "no trial at all"
        raise UserError(f"search: no trial has finished with a finite metric and loss ({reason})")
    return min(finished, key=lambda trial: trial_key(trial, study.directions[0]))


def front(study: optuna.Study) -> list[FrozenTrial]:
    """The finished trials that no other one beats in score and parameters, the fewest parameters first."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(finished, key=lambda t: (t.user_attrs[PARAMS], trial_key(t, study.directions[0])))
    found: list[FrozenTrial] = []
    for trial in ranked:
        best = trial_key(found[-1], study.directions[0])[0] if found else math.inf
        if trial_key(trial, study.directions[0])[0] < best:
            found.append(trial)
    return found
