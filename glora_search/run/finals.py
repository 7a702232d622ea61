"""The finals of a run: subnets and uniform methods race; the winner is the final adapter."""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import JournalStorage

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params, load_adapter
from glora_search.errors import UserError, invalid
from glora_search.files.text import write_text
from glora_search.finals.choice import choose
from glora_search.finals.contest import NOBODY_RACES, WAIT, Contest, Outcome, RaceOverError
from glora_search.finals.finalists import TUNED, Subnet, distinct, subnet_finalists
from glora_search.finals.lessons import Lesson
from glora_search.finals.race import STUDY_NAME
from glora_search.ranking import is_finite
from glora_search.recipe.arguments import EVALUATED
from glora_search.recipe.schema import Finals
from glora_search.run.context import Context
from glora_search.run.folder import RunFolder
from glora_search.run.origin import check_origin
from glora_search.run.search import evaluator_of
from glora_search.scoring import evaluate
from glora_search.search.results import genome_of, ranked
from glora_search.search.shared.storage import JournalFile
from glora_search.search.shared.workers import helped_by
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.tuners.glora import save_adapter

ASSIST = f"{__name__}:assist"
"""What a helper calls."""
TAUGHT = "taught"
"""The folder of what the supernet teaches."""
STARTS = "starts"
"""The folder of what subnets inherit."""
READY = "ready"
"""The file that says that the trainings can begin: what they share is written. It has the name of this race."""


def run_finals(run: Context, folder: Path, *, workers: int = 1) -> dict[str, Any]:
    """Race the search's best subnets against the uniform methods; leaves ``finals/``, the winner's adapter folder.

    ``finals/baseline/`` is the tuned uniform method, trained on equal terms and without a teacher.

    Args:
        workers: processes on this machine that share the trainings, this one included.
    """
    settings = run.recipe.finals
    assert settings is not None
    teach(run, folder, settings)
    contest = contest_of(run, folder, settings)
    if not contest.subnets and not contest.uniform:
        budget = run.recipe.search.max_params
        raise invalid("search.max_params", budget, NOBODY_RACES)
    write_starts(run, folder, contest)
    if not (folder / READY).is_file():
        write_text(folder / READY, uuid.uuid4().hex)
    storage = JournalStorage(JournalFile(folder / "journal.log"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=STUDY_NAME, storage=storage, load_if_exists=True)
    with helped_by(workers - 1, ASSIST, run.folder):
        outcome = contest.run(study)
    outcome = choose(contest, outcome)
    return _results(run, folder, contest, outcome, workers)


def assist(folder: Path, *, workers: int = 1) -> None:
    """Train finalists of a run, beside the process that began its finals, until the race is decided, or begun anew.

    Args:
        folder: the run folder.
        workers: see `run_finals`.
    """
    own = folder / "finals"
    while (race := _race_in(own)) is None:
        if not RunFolder(folder).is_busy():
            return
        time.sleep(WAIT)
    run = Context(folder)  # not before: the recipe is that of this race, or of a later one
    settings = run.recipe.finals
    assert settings is not None
    check_origin(run)  # this machine's data may be others
    contest = contest_of(run, own, settings)
    contest.goes_on = lambda: _race_in(own) == race and run.view.done("finals") is None
    try:
        with helped_by(workers - 1, ASSIST, folder):
            contest.run()
    except (RaceOverError, FileNotFoundError):  # once the race is over, the first process removes the checkpoints
        if contest.goes_on():
            raise


def _race_in(folder: Path) -> str | None:
    """The name of the race that goes on in a folder; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return (folder / READY).read_text()
    return None


def contest_of(run: Context, folder: Path, settings: Finals) -> Contest:
    """The finals, in this process."""
    recipe, task, trainings = run.recipe, run.task, folder / "trainings"
    args = run.arguments({**settings.training, **EVALUATED}, folder)
    return Contest(
        space=run.space,
        subnets=_best_subnets(run, settings.subnets),
        scoring=task,
        train=task.train,
        validation=task.validation,
        unlabelled=task.unlabelled,
        lesson=Lesson.load(folder / TAUGHT) if settings.teacher else None,
        args=args,
        folder=trainings,
        settings=settings,
        max_params=recipe.search.max_params,
        base=lambda: run.base(args),
        load=lambda folder: run.placed(load_adapter(task.model(), folder)),
        inherit=lambda one, base: load_adapter(base, folder / STARTS / one.start, trainable=True),
        lr_factors=recipe.lr_factors(settings),
        task_type=task.task_type,
        modules_to_save=task.modules_to_save,
        batch_size=recipe.search.batch_size,
    )


def _results(run: Context, folder: Path, contest: Contest, outcome: Outcome, workers: int) -> dict[str, Any]:
    """Keep the winner and the baseline, and say what is noted of the race."""
    if not outcome.finite(outcome.winner):
        rate = contest.args.learning_rate
        raise invalid("finals.training.learning_rate", rate, "a lower one: every finalist has diverged")

    def kept(name: str, where: Path) -> dict[str, Any]:
        return _keep(run, contest.best(outcome.named(name), outcome.result), where)

    figures, baseline = kept(outcome.winner, folder), None
    if outcome.baseline is not None and outcome.finite(outcome.baseline):
        own = outcome.named(outcome.baseline)
        baseline = {
            "name": own.name + (TUNED if outcome.tuned else ""),
            "method": own.method,
            **kept(own.name, folder / "baseline"),
        }
    per_step = contest.seconds / contest.trained if contest.trained else None
    return {
        "winner": outcome.winner,
        "direction": run.task.direction,
        **figures,
        "baseline": baseline,
        "finalists": outcome.table(),
        "curves": {name: dict(standing.losses) for name, standing in outcome.result.standings.items()},
        "trainings": round(outcome.result.steps / contest.steps, 2),
        "seconds_per_training": round(per_step * contest.steps, 1) if per_step else None,
        **({"workers": workers} if workers > 1 else {}),
        **({} if outcome.teacher is None else {"teacher": outcome.teacher}),
        "margin": contest.settings.margin,
        **({} if outcome.passed_over is None else {"passed_over": outcome.passed_over}),
    }


def _best_subnets(run: Context, count: int) -> list[Subnet]:
    table = pd.read_csv(run.view.trials())
    best = ranked(table, run.recipe.search.score, run.task.direction).sort_values("rank")
    scored = (
        Subnet(genome_of(row), int(row["user_attrs_params"]), float(row["user_attrs_loss"]))
        for _, row in best.iterrows()
    )
    return distinct(scored, run.space, count)


def write_starts(run: Context, folder: Path, contest: Contest) -> None:
    """The weights that subnets inherit, each as an adapter folder; one with ``done`` is whole."""
    subnets = subnet_finalists(contest.subnets, math.inf)  # which of them inherit is not known yet
    missing = [one for one in subnets if not (folder / STARTS / one.start / "done").is_file()]
    if not missing:
        return
    evaluator = evaluator_of(run, folder)
    for one in missing:
        start, found = folder / STARTS / one.start, evaluator.inherit(one.genome or {})
        save_adapter(start, found.config, found.weights)
        (start / "done").write_text("")


def teach(run: Context, folder: Path, settings: Finals) -> None:
    """Write what the supernet teaches, unless it is there; the teacher is the mean of some of its subnets."""
    members, recipe, task = settings.teacher, run.recipe, run.task
    if not members or (folder / TAUGHT).is_dir():
        return
    largest = run.view.result("supernet").get("max_params", recipe.supernet_max_params)
    chosen = draw_members(run.space, count=members, max_params=largest, seed=recipe.seed)
    teacher = Teacher(run.load("supernet"), chosen, task, recipe.search.batch_size)
    Lesson.of(teacher, "supernet", members, task.train, task.validation, task.unlabelled()).save(folder / TAUGHT)


def _keep(run: Context, checkpoint: Path, where: Path) -> dict[str, Any]:
    """Write a finalist's best checkpoint as an adapter folder, and score it."""
    task = run.task
    model = run.placed(load_adapter(task.model(), checkpoint, trainable=True))
    scored, params = evaluate(model, run.validation, task), adapter_params(model)
    if not is_finite(scored.metric, scored.loss):  # scored in another precision than it was trained in
        raise UserError(f"finals: {checkpoint} has diverged. Lower {run.rate_to_lower('finals')}")
    model.save_pretrained(str(where))
    task.processor.save_pretrained(str(where))
    write_card(where, task.model_path, run.facts(params, scored.metric))
    return {"params": params, "validation": scored.metric, "validation_loss": scored.loss}
