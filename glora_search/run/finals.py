"""The finals of a run: subnets and uniform methods race; the winner is the final adapter."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from datasets import load_from_disk
from optuna.storages import JournalStorage

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import invalid
from glora_search.files.text import read_json, write_json
from glora_search.finals.contest import WAIT, Contest, Subnet, finite
from glora_search.finals.finalists import Finalist
from glora_search.finals.race import STUDY_NAME, Result
from glora_search.finals.training import EVALUATED
from glora_search.recipe.schema import Finals
from glora_search.run.context import Context
from glora_search.run.origin import check_origin
from glora_search.run.search import evaluator_of
from glora_search.scoring import evaluate
from glora_search.search.results import genome_of, ranked
from glora_search.search.shared.storage import JournalFile
from glora_search.search.shared.workers import helped_by
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.training.distillation import with_unlabelled
from glora_search.tuners.glora import save_adapter

TAUGHT = "taught"
"""The folder of the rows that taught finalists learn from."""
READY = "ready"
"""The file that says that the trainings can begin: what they share is written."""


def run_finals(run: Context, folder: Path, *, workers: int = 1) -> dict[str, Any]:
    """Race the search's best subnets against the uniform methods; leaves ``finals/``, the winner's adapter folder.

    ``finals/baseline/`` is the tuned uniform method, trained on equal terms and without a teacher.

    Args:
        workers: processes on this machine that share the trainings, this one included.
    """
    settings = run.recipe.finals
    assert settings is not None
    _teach(run, folder, settings)
    contest, field = _contest(run, folder, settings)
    if not field:
        budget = run.recipe.search.max_params
        raise invalid("search.max_params", budget, "with finals, a budget within which a subnet or a method can train")
    _write_starts(run, folder, contest, field)
    (folder / READY).write_text("")
    storage = JournalStorage(JournalFile(folder / "journal.log"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, load_if_exists=True)
    with helped_by(workers - 1, functools.partial(assist, run.folder)):
        result = contest.race(field, study)
    return _results(run, folder, contest, field, result)


def assist(folder: Path, *, workers: int = 1) -> None:
    """Train finalists of a run, beside the process that began its finals, until the race is decided.

    Args:
        folder: the run folder.
        workers: see `run_finals`.
    """
    run = Context(folder)
    settings, own = run.recipe.finals, run.folder / "finals"
    assert settings is not None
    check_origin(run)  # this machine's data may be others
    while not (own / READY).is_file():
        if not run.view.is_busy():
            return
        time.sleep(WAIT)
    contest, field = _contest(run, own, settings)
    with helped_by(workers - 1, functools.partial(assist, folder)):
        contest.race(field)


def _contest(run: Context, folder: Path, settings: Finals) -> tuple[Contest, list[Finalist]]:
    """The race, and who competes in it."""
    recipe, task, trainings = run.recipe, run.task, folder / "trainings"
    contest = Contest(
        space=run.space,
        scoring=task,
        train=task.train,
        validation=task.validation,
        taught=load_from_disk(str(folder / TAUGHT)) if settings.teacher else None,
        args=run.arguments({**settings.training, **EVALUATED}, folder),
        folder=trainings,
        settings=settings,
        max_params=recipe.search.max_params,
        base=task.model,
        inherit=lambda one, base: load_adapter(base, trainings / one.slug / "start", trainable=True),
        lr_factors=recipe.lr_factors(settings),
        task_type=task.task_type,
        modules_to_save=task.modules_to_save,
    )
    return contest, contest.field(_best_subnets(run, settings.subnets))


def _results(run: Context, folder: Path, contest: Contest, field: list[Finalist], result: Result) -> dict[str, Any]:
    """Keep the winner and the baseline, and say what is noted of the race."""
    winner, task = result.last[0], run.task
    if not finite(result, winner):
        rate = contest.args.learning_rate
        raise invalid("finals.training.learning_rate", rate, "a lower one: every finalist has diverged")
    named = {one.name: one for one in field}
    keep = functools.partial(_keep, run)
    figures = keep(contest.best(named[winner], result.standings[winner]), folder)
    baseline = None
    if result.baseline is not None and finite(result, result.baseline):
        own = named[result.baseline]
        scored = keep(contest.best(own, result.standings[own.name]), folder / "baseline")
        baseline = {"name": f"{own.name}, tuned", "method": own.method, **scored}
    per_step = contest.seconds / contest.trained if contest.trained else None
    return {
        "winner": winner,
        "direction": task.direction,
        **figures,
        "baseline": baseline,
        "finalists": contest.table(field, result),
        "curves": {one.name: dict(result.standings[one.name].losses) for one in field},
        "trainings": round(result.steps / contest.steps, 2),
        "seconds_per_training": round(per_step * contest.steps, 1) if per_step else None,
        **({"teacher": read_json(folder / "teacher.json")} if contest.taught is not None else {}),
    }


def _best_subnets(run: Context, count: int) -> list[Subnet]:
    """The search's best subnets that have something to train."""
    table = pd.read_csv(run.view.trials())
    best = ranked(table, run.recipe.search.score, run.task.direction).sort_values("rank")
    chosen = best[best["user_attrs_params"] > 0].head(count)
    return [(genome_of(row), int(row["user_attrs_params"])) for _, row in chosen.iterrows()]


def _write_starts(run: Context, folder: Path, contest: Contest, field: list[Finalist]) -> None:
    """The weights that subnets inherit, each as an adapter folder; what is there is whole."""
    missing = [one for one in field if not one.uniform and not (contest.home(one) / "start" / "done").is_file()]
    if not missing:
        return
    evaluator = evaluator_of(run, folder)
    for one in missing:
        start, found = contest.home(one) / "start", evaluator.inherit(one.genome or {})
        save_adapter(start, found.config, found.weights)
        (start / "done").write_text("")


def _teach(run: Context, folder: Path, settings: Finals) -> None:
    """Write what taught finalists learn from, unless it is there: train rows, and unlabelled ones, with what the
    teacher says of them.

    The teacher is the mean of some of the supernet's subnets.
    """
    members, recipe, task = settings.teacher, run.recipe, run.task
    if not members or (folder / TAUGHT).is_dir():
        return
    largest = run.view.result("supernet").get("max_params", recipe.supernet_max_params)
    chosen = draw_members(run.space, count=members, max_params=largest, seed=recipe.seed)
    teacher = Teacher(run.load("supernet"), chosen, task, recipe.search.batch_size)
    worth = teacher.evaluate(task.validation)
    facts = {"members": members, "validation": worth.metric, "validation_loss": worth.loss}
    taught, unlabelled = teacher.teach(task.train), task.unlabelled()
    if unlabelled is not None:
        facts["unlabelled"] = len(unlabelled)
        taught = with_unlabelled(taught, teacher.teach(unlabelled))
    write_json(folder / "teacher.json", facts)
    shutil.rmtree(making := folder / f".{TAUGHT}", ignore_errors=True)
    taught.save_to_disk(str(making))
    making.rename(folder / TAUGHT)


def _keep(run: Context, checkpoint: Path, where: Path) -> dict[str, Any]:
    """Write a finalist's best checkpoint as an adapter folder, and score it."""
    task = run.task
    model = run.placed(load_adapter(task.model(), checkpoint, trainable=True))
    scored, params = evaluate(model, run.validation, task), adapter_params(model)
    model.save_pretrained(str(where))
    task.processor.save_pretrained(str(where))
    write_card(where, task.model_path, run.facts(params, scored.metric))
    return {"params": params, "validation": scored.metric, "validation_loss": scored.loss}
