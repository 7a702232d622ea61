"""The second stage: searching the supernet for the best subnet, by one process or by many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from glora_search.errors import UserError
from glora_search.progress import say, track
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.folder import SHARED, RunFolder, digest
from glora_search.run.origin import check_origin
from glora_search.search.calibration import subnet_evaluator
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.search.evolution import EvolutionSampler
from glora_search.search.results import show_progress, summary, trials_frame
from glora_search.search.samplers import make_sampler
from glora_search.search.shared.storage import open_storage
from glora_search.search.shared.workers import helped_by
from glora_search.search.study import search
from glora_search.search.trials import EXHAUSTED, FAILED, STUDY_NAME
from glora_search.space import BoundSpace

ASSIST = f"{__name__}:assist"
"""What a helper calls."""


def run_search(run: Context, folder: Path, *, workers: int = 1, storage: str | None = None) -> dict[str, Any]:
    """Search for the best subnet under the budget; leaves ``search/`` with the journal and ``trials.csv``.

    Args:
        workers: processes on this machine, this one included.
        storage: what workers of other machines share, see `open_storage`; None is the journal in the run folder,
            which can lie on a shared disk.
    """
    run.view.check_storage(storage)
    if storage is not None:
        open_storage(storage)  # one that cannot be opened leaves no mark
        (folder / SHARED).write_text("")
    study = _work(run, workers, storage)
    try:
        found = summary(study)
    except UserError as error:  # what has failed is not tried again
        again = run.view.command("search", "--again", *(() if storage is None else ("--storage", "STORAGE")))
        raise UserError(f"{error}. Once that is mended, search anew: {again}") from error
    if EXHAUSTED in found:
        say(f"note: no further subnet within the budget: {found['trials']} of {run.recipe.search.trials} trials")
    if found["failed"]:
        failed = [trial for trial in study.get_trials(deepcopy=False) if FAILED in trial.user_attrs]
        reason = failed[-1].user_attrs[FAILED]
        say(f"note: {found['failed']} of {found['trials']} evaluations failed, the last one: {reason}")
    table = folder / "trials.csv"
    trials_frame(study).to_csv(table, index=False)
    return {**found, "files": {table.name: digest(table)}}


def assist(folder: Path, *, workers: int = 1, storage: str | None = None) -> None:
    """Evaluate subnets of a run's search until it is complete, beside the process that began it.

    Args:
        folder: the run folder.
        workers, storage: see `run_search`.
    """
    run = Context(folder)
    run.view.check_storage(storage)
    _work(run, workers, storage)


def _work(run: Context, workers: int, storage: str | None) -> optuna.Study:
    settings = run.recipe.search
    check_origin(run)  # of each worker: its data may be others
    evaluator = evaluator_of(run, run.folder / "search")
    helped = helped_by(workers - 1, ASSIST, run.folder, storage=storage)
    with helped, track("search", settings.trials) as bar:
        return search(
            run.space,
            evaluator,
            sampler=settings.sampler,
            trials=settings.trials,
            max_params=settings.max_params,
            objective=settings.objective,
            score=settings.score,
            direction=run.task.direction,
            seed=run.recipe.seed,
            options=settings.options,
            racing=settings.racing,
            storage=storage or run.folder / "search" / "journal.log",
            study_name=run.view.shared_name() if storage else STUDY_NAME,
            weights=run.view.weights(),
            on_trial=show_progress(bar),
        )


def short_search(recipe: Recipe, space: BoundSpace, trials: int) -> list[str]:
    """A note where a search of so many trials is mostly its start; none where no subnet races, so that it chooses
    nothing."""
    settings = recipe.search
    if recipe.finals is not None and not recipe.finals.subnets:
        return []
    sampler = make_sampler(settings.sampler, space, max_params=settings.max_params, options=settings.options)
    note = sampler.note(trials) if isinstance(sampler, EvolutionSampler) else None
    return [] if note is None else [note]


def evaluator_of(run: Context, folder: Path) -> SubnetEvaluator:
    """What scores the supernet's subnets, each trained a little before where the recipe says so.

    Args:
        folder: of the stage that asks, for what a Trainer writes.
    """
    recipe, task = run.recipe, run.task
    steps = recipe.search.calibration_steps
    return subnet_evaluator(
        run.load("supernet", trainable=steps > 0),
        task,
        task.train,
        task.validation,
        run.arguments(recipe.supernet.training, folder),
        calibration_steps=steps,
        lr_factors=recipe.supernet.lr_factors,
        batch_size=recipe.search.batch_size,
        fold=recipe.search.fold,
    )


def forget_shared_search(run: RunFolder, storage: str) -> None:
    """Remove a run's search from a storage that workers share, so that it is done again."""
    opened = open_storage(storage)
    for name in (run.shared_name(), f"{run.shared_name()}.workers"):
        if name in optuna.get_all_study_names(opened):
            optuna.delete_study(study_name=name, storage=opened)
