"""How far a run is: read from its folder alone, also while another process works there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import TrialState

from glora_search.errors import UserError, invalid
from glora_search.files.text import load_yaml, read_json
from glora_search.run.stages import COMMANDS, NEEDS, STAGES
from glora_search.search.shared.storage import JournalReader
from glora_search.search.trials import METRIC, ORIGIN, PARAMS, STUDY_NAME, best_trial

DONE, RUNNING, INTERRUPTED, NOT_BEGUN, LEFT_OUT = "done", "running", "interrupted", "not begun", "left out"


def read_recipe(folder: Path) -> dict[str, Any]:
    """A run's recipe as it was written, every default included.

    Raises:
        UserError: the folder is not a run folder.
    """
    path = folder / "recipe.yaml"
    if not path.is_file() or not (folder / "space.yaml").is_file():
        raise invalid("run", str(folder), "a run folder, made by 'glora-search run RECIPE'")
    recipe = load_yaml(path)
    missing = [key for key in ("name", "task", "data", "supernet", "search") if key not in recipe]
    if missing:
        raise UserError(f"{path}: {missing[0]}: missing; it is no run folder's recipe")
    return recipe


def read_stage(folder: Path, stage: str) -> dict[str, Any] | None:
    """What a finished stage has left, or None."""
    path = folder / "metrics.json" if stage == "test" else folder / stage / "stage.json"
    found: dict[str, Any] | None = read_json(path) if path.is_file() else None
    return found


def is_busy(folder: Path) -> bool:
    """Whether a process works in a run folder; nothing is made there."""
    lock = folder / ".lock"
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # of someone else, or on a disk that is read-only: it cannot be told
        return False


def open_journal(folder: Path) -> BaseStorage:
    """The journal of a run's search, to be looked at.

    Raises:
        UserError: no search has begun in this folder.
    """
    path = folder / "search" / "journal.log"
    if not path.is_file() or not path.stat().st_size:
        raise UserError(f"{folder}: no search has begun here; run first: glora-search search {folder}")
    return JournalStorage(JournalReader(path))


def status(folder: Path, study: optuna.Study | None = None) -> dict[str, Any]:
    """The state of each stage, and how far the search is.

    Args:
        folder: the run folder.
        study: the search's, where it is not kept in the folder.

    Returns:
        ``name``, ``folder``, ``budget``, ``busy``, ``stages`` (each with ``stage``, ``command``, ``state`` and
        ``seconds``) and ``search`` (None before its first trial).

    Raises:
        UserError: the folder is not a run folder.
    """
    recipe, busy = read_recipe(folder), is_busy(folder)
    states = {stage: _state(folder, stage, recipe) for stage in STAGES}
    if busy:
        now = _at_work(folder, states)
        if now is not None:
            states[now] = RUNNING
    stages = []
    for stage, state in states.items():
        done = read_stage(folder, stage)
        seconds = None if done is None else done["seconds"]
        if isinstance(seconds, dict):  # metrics.json has those of all stages
            seconds = seconds.get(COMMANDS[stage])
        stages.append({"stage": stage, "command": COMMANDS[stage], "state": state, "seconds": seconds})
    return {
        "name": recipe["name"],
        "folder": str(folder),
        "budget": recipe["search"].get("max_params"),
        "busy": busy,
        "stages": stages,
        "search": _search(folder, recipe["search"], study),
    }


def _state(folder: Path, stage: str, recipe: dict[str, Any]) -> str:
    if read_stage(folder, stage) is not None:
        return DONE
    if stage != "test" and (folder / stage).is_dir():
        return INTERRUPTED
    return LEFT_OUT if stage == "baselines" and not recipe.get("baselines") else NOT_BEGUN


def _at_work(folder: Path, states: dict[str, str]) -> str | None:
    """The stage that the process in the folder is at: of those that have begun, the one written to last."""
    begun = [stage for stage, state in states.items() if state == INTERRUPTED]
    if begun:
        return max(begun, key=lambda stage: _last_change(folder / stage))
    ready = [stage for stage in STAGES if states[stage] == NOT_BEGUN and states.get(NEEDS.get(stage, ""), DONE) == DONE]
    return "test" if ready == ["test"] else None


def _last_change(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        try:
            times.append(path.stat().st_mtime)
        except OSError:  # removed in the meantime
            continue
    return max(times)


def _search(folder: Path, settings: dict[str, Any], study: optuna.Study | None) -> dict[str, Any] | None:
    done = read_stage(folder, "search")
    asked = settings.get("trials")
    if done is not None:
        found = {key: done[key] for key in ("trials", "evaluated", "partial", "failed")}
        return {**found, "of": asked, "best": {key: done["best"][key] for key in ("validation", "params", "origin")}}
    if study is None:
        try:
            study = optuna.load_study(study_name=STUDY_NAME, storage=open_journal(folder))
        except (UserError, KeyError):  # no journal, or no study in it yet
            return None
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    best: dict[str, Any] | None = None
    if TrialState.COMPLETE in states:
        trial = best_trial(study)
        attributes = trial.user_attrs
        best = {"validation": attributes[METRIC], "params": attributes[PARAMS], "origin": attributes[ORIGIN]}
    return {
        "trials": len(trials),
        "evaluated": states.count(TrialState.COMPLETE),
        "partial": states.count(TrialState.PRUNED),
        "failed": states.count(TrialState.FAIL),
        "of": asked,
        "best": best,
    }
