"""What is kept of a finished search: its trials as a table, and its best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from glora_search.progress import Bar
from glora_search.search.trials import LOSS, METRIC, NOTES, ORIGIN, PARAMS, best_trial, front, rank_key

HIDDEN = (METRIC, NOTES)


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row a trial, named as Optuna's ``trials_dataframe`` names them: ``params_<gene>``, ``user_attrs_<name>``.

    ``value`` is the metric, whatever the score was.
    """
    rows = [
        {
            "number": trial.number,
            "value": trial.user_attrs.get(METRIC),
            "state": trial.state.name,
            **{f"user_attrs_{name}": value for name, value in sorted(trial.user_attrs.items()) if name not in HIDDEN},
            **{f"params_{gene}": choice for gene, choice in trial.params.items()},
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    return pd.DataFrame(rows)


def summary(study: optuna.Study) -> dict[str, Any]:
    """What the later stages need to know of a search.

    Raises:
        UserError: no trial has a value.
    """
    best = best_trial(study)
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    found = {
        "trials": len(trials),
        "evaluated": states.count(TrialState.COMPLETE),
        "partial": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "seconds_per_evaluation": round(float(np.median([trial.user_attrs["seconds"] for trial in trials])), 4),
        "best": {**_facts(best), "genome": best.params},
    }
    if len(study.directions) > 1:
        found["front"] = [{**_facts(trial), "genome": trial.params} for trial in front(study)]
    return found


def _facts(trial: FrozenTrial) -> dict[str, Any]:
    attributes = trial.user_attrs
    return {
        "validation": attributes[METRIC],
        "validation_loss": attributes[LOSS],
        "params": attributes[PARAMS],
        "origin": attributes[ORIGIN],
    }


def show_progress(bar: Bar) -> Callable[[optuna.Study, FrozenTrial], None]:
    """A callback that moves a bar by each trial and notes the metric of the best one so far."""
    best: FrozenTrial | None = None

    def show(study: optuna.Study, trial: FrozenTrial) -> None:
        nonlocal best
        if trial.state == TrialState.COMPLETE:
            known = [trial] if best is None else [best, trial]
            best = min(known, key=lambda one: rank_key(one, study.directions[0]))
        bar.advance(1, "" if best is None else f"best {best.user_attrs[METRIC]:.4f}")

    return show
