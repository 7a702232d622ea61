"""How far a run is: read from its folder alone, also while another process works there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from glora_search.run.folder import RunFolder
from glora_search.run.stages import STAGES, Stage
from glora_search.search.trials import METRIC, ORIGIN, PARAMS, best_trial

DONE, RUNNING, INTERRUPTED, NOT_BEGUN, LEFT_OUT = "done", "running", "interrupted", "not begun", "left out"


def status(run: RunFolder, study: optuna.Study | None = None) -> dict[str, Any]:
    """The state of each stage, and how far the search is.

    Args:
        run: the run folder.
        study: the search's, where it is not kept in the folder.

    Returns:
        ``name``, ``folder``, ``budget``, ``busy``, ``stages`` (each with ``stage``, ``command``, ``state`` and
        ``seconds``), ``search`` (None before its first trial), and ``budgets`` (of each smaller budget its ``state``,
        and the commands that are ``left``).
    """
    busy, seconds = run.is_busy(), run.seconds()
    seconds |= {one.command: done["seconds"] for one in STAGES.values() if one.alone and (done := run.done(one.name))}
    states = {name: _state(run, stage) for name, stage in STAGES.items()}
    now = at_work(run) if busy else None
    if now is not None:
        states[now] = RUNNING
    stages = [
        {"stage": name, "command": stage.command, "state": states[name], "seconds": seconds.get(stage.command)}
        for name, stage in STAGES.items()
        if not (stage.alone and states[name] == LEFT_OUT)
    ]
    return {
        "name": run.name,
        "folder": str(run.path),
        "budget": run.budget,
        "busy": busy,
        "stages": stages,
        "search": _search(run, study),
        "budgets": _budgets(run, busy and now is None),
    }


def _budgets(run: RunFolder, at_one: bool) -> list[dict[str, Any]]:
    """Args: at_one: whether another process is at the first that is not done."""
    found = []
    for budget, one in run.by_budget().items():
        states = {stage.command: NOT_BEGUN if one is None else _state(one, stage) for stage in STAGES.values()}
        left = [stage.command for stage in STAGES.values() if run.asks_for(stage) and states[stage.command] != DONE]
        state = DONE if not left else NOT_BEGUN if one is None else RUNNING if at_one else INTERRUPTED
        at_one = at_one and state != RUNNING
        found.append({"budget": budget, "state": state, "left": left})
    return found


def _state(run: RunFolder, stage: Stage) -> str:
    if run.done(stage.name) is not None:
        return DONE
    if stage.has_folder and (run.path / stage.name).is_dir():
        return INTERRUPTED
    return NOT_BEGUN if run.asks_for(stage) else LEFT_OUT


def at_work(run: RunFolder) -> str | None:
    """The stage that another process is at: of those that have begun, the one written to last; None where none is."""
    if not run.is_busy():
        return None
    states = {name: _state(run, stage) for name, stage in STAGES.items()}
    begun = [stage for stage, state in states.items() if state == INTERRUPTED and not STAGES[stage].alone]
    if begun:
        return max(begun, key=lambda stage: _last_change(run.path / stage))
    # The last stage leaves no folder by which one could see that it has begun.
    ready = [
        name
        for name, stage in STAGES.items()
        if states[name] == NOT_BEGUN and all(states[needed] == DONE for needed in stage.needs)
    ]
    if len(ready) == 1 and not STAGES[ready[0]].has_folder:
        return ready[0]
    return next((stage for stage, state in states.items() if state == INTERRUPTED), None)  # of its own command


def _last_change(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed in the meantime
            continue
    return max(times)


def _search(run: RunFolder, study: optuna.Study | None) -> dict[str, Any] | None:
    done, asked = run.done("search"), run.recipe["search"].get("trials")
    if done is not None:
        found = {key: done[key] for key in ("trials", "evaluated", "partial", "failed")}
        return {
            **found,
            "of": max(asked, done["trials"]),
            "best": {key: done["best"][key] for key in ("validation", "params", "origin")},
        }
    study = study or run.study()
    if study is None:
        return None
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    best: dict[str, Any] | None = None
    if TrialState.COMPLETE in states:
        attributes = best_trial(study).user_attrs
        best = {"validation": attributes[METRIC], "params": attributes[PARAMS], "origin": attributes[ORIGIN]}
    return {
        "trials": len(trials),
        "evaluated": states.count(TrialState.COMPLETE),
        "partial": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "of": asked,
        "best": best,
    }
