"""What is kept of a finished search: its trials as a table, and its best."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from glora_search.progress import Bar
from glora_search.ranking import rank_key
from glora_search.search.trials import EXHAUSTED, LOSS, METRIC, NOTES, ORIGIN, PARAMS, best_trial, front, trial_key
from glora_search.space.layers import Genome

HIDDEN = (METRIC, NOTES)
GENE = "params_"
"""How the columns of genes begin in a table of trials."""


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


def ranked(trials: pd.DataFrame, score: str, direction: str) -> pd.DataFrame:
    """The trials that were scored on all rows, each with its ``rank`` (0 is the best) and its ``score``.

    Args:
        trials: as `trials_frame` makes it, or its csv.
        score: what the search goes by: ``loss`` or ``metric``. In the result lower is better.
        direction: of the metric.
    """
    if trials.empty:
        return trials
    scored = trials[trials["state"] == "COMPLETE"].reset_index(drop=True)
    if scored.empty:
        return scored
    loss = scored["user_attrs_loss"]
    values, better = (loss, "minimize") if score == "loss" else (scored["value"], direction)
    keys = [rank_key(*pair, direction=better) for pair in zip(values, loss, strict=True)]
    rank = np.empty(len(scored), dtype=int)
    rank[sorted(range(len(keys)), key=lambda row: (*keys[row], scored["number"][row]))] = np.arange(len(scored))
    return pd.concat([scored, pd.DataFrame({"score": [key[0] for key in keys], "rank": rank})], axis="columns")


def genome_of(trial: pd.Series) -> Genome:
    """The genome of a row of such a table; pandas makes ranks numbers of NumPy's."""
    genes = trial[[name for name in trial.index if name.startswith(GENE)]]
    return {
        str(name).removeprefix(GENE): choice if isinstance(choice, str) else int(choice)
        for name, choice in genes.items()
    }


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
        **({EXHAUSTED: True} if study.user_attrs.get(EXHAUSTED) else {}),
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
            best = min(known, key=lambda one: trial_key(one, study.directions[0]))
        bar.advance(1, "" if best is None else f"best {best.user_attrs[METRIC]:.4f}")

    return show
