"""The methods of the study that are whole runs, from a recipe to the test, and the teacher that they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from study_data import recipe_of
from study_plan import RACES, Cell, Study
from study_training import settings_of

from glora_search import Recipe, Run
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.supernet.teacher import Teacher, draw_members

NOTED = ("teacher", "finalists", "passed_over")
"""What is kept of a race."""
HEAVY = ("merged", "retrained", "finals", "best", "search", "metrics.json", "report.html")
"""What a run that shares a supernet does not take over."""


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings with others in their places, section by section; null removes one."""
    found = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if both else value
    return {key: value for key, value in found.items() if value is not None}


def run_recipe(cell: Cell, study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The recipe of a run: the study's, with what the method has in place of it, and what all methods share."""
    recipe = merged(study.recipe, study.runs[cell.method])  # type: ignore[index]
    shared = settings_of(study.rate, study.epochs[cell.rows], study.batch)
    supernet = {
        "num_train_epochs": study.supernet_epochs[cell.rows],
        "learning_rate": study.supernet_rates.get(cell.rows, study.rate),
        "save_strategy": "no",
    }
    own = study.runs[cell.method].get("supernet", {})  # type: ignore[index]
    largest = {} if "max_params" in own else {"max_params": study.teacher_size * cell.budget}
    recipe["supernet"] = {**largest, **recipe["supernet"]}
    recipe["supernet"]["training"] = {**shared, **supernet, **recipe["supernet"].get("training", {})}
    recipe["search"] = {**recipe["search"], "max_params": cell.budget}
    for section in ("finals", "retrain"):
        if section in recipe:
            recipe[section] = {**recipe[section], "training": {**shared, **recipe[section].get("training", {})}}
    return recipe | recipe_of(cell, study, data, cache)


def open_run(cell: Cell, study: Study, data: Path, cache: Path) -> Run:
    """A cell's run folder; it goes on where a kill left it, and has the supernet of `ours` where that is there."""
    folder = cache / "runs" / cell.name
    finished = folder.with_name(cell.of("ours").name)
    if cell.method in RACES and not folder.is_dir() and finished.is_dir():
        shutil.rmtree(making := folder.with_suffix(".making"), ignore_errors=True)
        shutil.copytree(finished, making, ignore=shutil.ignore_patterns(*HEAVY))
        making.rename(folder)
    return Run.create(Recipe.model_validate(run_recipe(cell, study, data, cache)), folder)


def run_one(cell: Cell, study: Study, data: Path, cache: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A whole run.

    Returns:
        The columns of the csv; and the paths of the search's best subnet and of the final adapter, with what the race
        noted of its teacher and its finalists.
    """
    run = open_run(cell, study, data, cache)
    metrics = run.all_stages()
    task, source = run.context.task, run.view.result("merged")["source"]
    done, finals = run.view.result(source), run.view.done("finals") or {}
    rows = task.test_split()
    test = evaluate(run.context.load(source), length_sorted_batches(rows, task.collator, 64), task)
    baseline = finals.get("baseline") or {}
    seconds, trainings = spent(run.view.seconds(), finals, metrics.get("lora_trainings"))
    compared = next((one for one in metrics["baselines"] if one.get("name") == baseline.get("name")), {})
    found = {
        "epochs": study.epochs[cell.rows],
        "metric": task.metric,
        "params": metrics["final"]["params"],
        "validation": done["validation"],
        "validation_loss": done["validation_loss"],
        "test": metrics["final"]["test"],
        "test_loss": test.loss,
        "test_rows": len(rows),
        "seconds": seconds,
        "trainings": trainings,
        "winner": finals.get("winner", metrics["final"]["source"]),
        "baseline": baseline.get("name"),
        "baseline_validation_loss": baseline.get("validation_loss"),
        "baseline_test": compared.get("test"),
        "teacher_validation_loss": (finals.get("teacher") or {}).get("validation_loss"),
    }
    genomes = {"best": paths_of(run.folder / "best"), "final": paths_of(run.folder / source)}
    return found, {**genomes, **{name: finals[name] for name in NOTED if name in finals}}


def spent(seconds: dict[str, float], finals: dict[str, Any], trainings: float | None) -> tuple[float, float | None]:
    """What a run has cost but for its test, in seconds and in LoRA trainings.

    Finals that went on after a kill note the seconds since then, but all of their trainings: the rest is added.

    Args:
        seconds: command -> seconds of its stage.
        finals: what the stage has left; nothing where there were none.
        trainings: what the run itself says.
    """
    total, unit = (
        sum(taken for name, taken in seconds.items() if name != "evaluate"),
        finals.get("seconds_per_training"),
    )
    if not unit or trainings is None:
        return round(total, 1), trainings
    lost = max(0.0, finals["trainings"] * unit - seconds["finals"])
    return round(total + lost, 1), round(trainings + lost / unit, 2)


def tidy(cell: Cell, cache: Path) -> None:
    """Remove the weights of a run whose row is in the csv; a supernet stays, since others build on that of `ours`."""
    folder = cache / "runs" / cell.name
    for name in ("merged", "retrained", "finals") if cell.method == "ours" else ("",):
        shutil.rmtree(folder / name, ignore_errors=True)


def paths_of(adapter: Path) -> dict[str, dict[str, Any]] | None:
    """Layer -> its paths and rank, of a subnet's adapter folder; None where it is another method's."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    found: dict[str, dict[str, Any]] | None = config.get("path_pattern")
    return found


def teach(cell: Cell, study: Study, task: Any, data: Path, cache: Path) -> tuple[Dataset, dict[str, Any]]:
    """The train rows with what the supernet of `ours` says of them, and what that is worth on validation."""
    run = open_run(cell.of("ours"), study, data, cache)
    run.do("supernet")
    teacher = teacher_of(run, study)
    return teacher.teach(task.train), {"teacher_validation_loss": teacher.evaluate(task.validation).loss}


def teacher_of(run: Run, study: Study) -> Teacher:
    """The mean prediction of some subnets of a run's supernet."""
    recipe = run.context.recipe
    members = draw_members(
        run.context.space, count=study.members, max_params=recipe.supernet_max_params, seed=recipe.seed
    )
    return Teacher(run.context.load("supernet"), members, run.context.task)
