"""The winner of the finals for use: trained again on all labelled rows, as an adapter and as a plain model."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

from datasets import concatenate_datasets

from glora_search.adapters.card import write_card
from glora_search.adapters.load import adapter_params
from glora_search.errors import UserError, invalid
from glora_search.files.text import write_json
from glora_search.finals.contest import PEERS, Contest
from glora_search.finals.finalists import Finalist
from glora_search.finals.lessons import Lesson
from glora_search.finals.refit import finalist_of, refit, with_further
from glora_search.finals.rungs import PARTS
from glora_search.ranking import is_finite
from glora_search.run import supernet
from glora_search.run.context import Context
from glora_search.run.finals import contest_of, teach, write_starts
from glora_search.run.merge import merge_adapter
from glora_search.scoring import evaluate

WORSE, SLACK = 1.1, 0.02
"""Validation rows that it has learned from have no loss so many times, and so much, above that before, unless a
training fails."""
TRAINED = "trained"
"""The folder of what is only needed on the way."""
DONE = "done.json"
"""The file that says that the supernet is trained."""
NONE_LEFT = "refit learns from the validation rows, and none are left that could say"


def refit_winner(run: Context, folder: Path) -> dict[str, Any]:
    """Train the winner on train and validation rows; leaves ``refitted/``, an adapter folder, and ``refitted/merged``.

    The supernet that taught it, or whose weights it inherits, is trained on all of these rows before. No rows are left
    to score the result on, but for the test split, which it does not read.

    Raises:
        UserError: a training stops early, or lowers its rate, by validation rows, and none are left; or it has failed:
            it has diverged, or the loss on the validation rows is far higher than before the adapter learned from them.
    """
    raced, settings = run.view.result("finals"), run.recipe.finals
    assert settings is not None
    row = next(row for row in raced["finalists"] if row["name"] == raced["winner"])
    if not {"method", "rate", "best_step"} <= row.keys():
        raise _made_earlier(run, run.folder / "finals" / "stage.json")
    race = contest_of(run, run.folder / "finals", settings)
    one = finalist_of(race, row["name"], row["method"], row["rate"])
    contest = _on_all_rows(run, race, one, raced, folder / TRAINED)
    model, steps = refit(contest, one, row["best_step"] / _steps(raced), folder / "checkpoints")
    scored, params = evaluate(model, run.validation, run.task), adapter_params(model)
    if not is_finite(scored.metric, scored.loss) or scored.loss > WORSE * row["validation_loss"] + SLACK:
        shutil.rmtree(folder / "checkpoints")  # going on from there would not help
        losses = f"{scored.loss:.4f}, and was {row['validation_loss']:.4f} before it learned from them"
        raise UserError(
            f"refit: the adapter's loss on the validation rows is {losses}; no adapter is written. {_as_it_was(run)}"
        )
    rows = len(run.task.train_rows) + len(run.task.validation)
    model.save_pretrained(str(folder))
    run.task.processor.save_pretrained(str(folder))
    facts = {**run.facts(params), "trained on": f"{rows:,} rows, those for validation too"}
    write_card(folder, run.task.model_path, facts)
    merged = merge_adapter(run, folder.name, folder / "merged")
    return {
        "winner": raced["winner"],
        "params": params,
        "rows": rows,
        "steps": steps,
        "max_abs_logit_difference": merged["max_abs_logit_difference"],
    }


def _steps(raced: dict[str, Any]) -> int:
    """The steps of a whole training of the race, which was evaluated `PARTS` times."""
    return PARTS * min(int(step) for losses in raced["curves"].values() for step in losses)


def _made_earlier(run: Context, path: Path) -> UserError:
    """The refusal of a race that did not note what a refit needs."""
    return UserError(f"refit: an earlier version has made {path}; run first: {run.view.command('finals', '--again')}")


def _as_it_was(run: Context) -> str:
    return f"{run.folder / 'finals'} has the adapter as it was"


def _on_all_rows(run: Context, race: Contest, one: Finalist, raced: dict[str, Any], folder: Path) -> Contest:
    """The race's contest with all labelled rows to learn from, and what the finalist needs of a supernet.

    Args:
        folder: gets the supernet, what it teaches, and what the finalist inherits.
    """
    by_supernet = one.taught and raced["teacher"].get("by") != "finalists"
    every = _context(run, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if by_supernet or one.inherits:
        _train_supernet(run, every, folder / "supernet")
    settings = every.recipe.finals
    assert settings is not None
    if not by_supernet:
        settings.teacher = 0
    teach(every, folder, settings)
    contest = contest_of(every, folder, settings)
    if one.inherits:
        write_starts(every, folder, contest)
    if one.taught and not by_supernet:
        contest.lesson = _peers(run, race)
    return contest


def _train_supernet(run: Context, every: Context, folder: Path) -> None:
    """The supernet on all rows, unless it is there."""
    if (folder / DONE).is_file():
        return
    settings = run.recipe.supernet
    _refuse_plateau("supernet", settings.training)
    if settings.patience is not None or settings.training.get("load_best_model_at_end"):
        key, value = ("patience", settings.patience) if settings.patience else ("training.load_best_model_at_end", True)
        raise invalid(f"supernet.{key}", value, f"nothing: {NONE_LEFT} when to stop")
    folder.mkdir(exist_ok=True)
    try:
        done = supernet.train(every, folder)
    except UserError as error:
        why = f"no supernet of all rows ({error}); no adapter is written"
        raise UserError(f"refit: {why}. {_as_it_was(run)}") from error
    write_json(folder / DONE, done)


def _refuse_plateau(section: str, training: dict[str, Any]) -> None:
    """Refuse a schedule that asks the validation rows."""
    if (schedule := training.get("lr_scheduler_type")) in ("reduce_lr_on_plateau", "greedy"):
        allowed = f"another one: {NONE_LEFT} when to lower the rate"
        raise invalid(f"{section}.training.lr_scheduler_type", schedule, allowed)


def _context(run: Context, folder: Path) -> Context:
    """The run with its validation rows among its train rows, and another folder for what is made from these.

    Its trainings have as many epochs, and steps of as many rows; steps that the recipe counts are so many more.
    """
    task, trained = copy.copy(run.task), run.view.result("supernet")
    further = task.sequences(task.validation)
    task.train, task.train_rows = (
        concatenate_datasets([rows, more]) for rows, more in ((task.train, further), (task.train_rows, task.validation))
    )
    _ = run.space  # it lies in the run folder
    every = copy.copy(run)
    every.task, every.folder, every.recipe = task, folder, run.recipe.model_copy(deep=True)
    assert every.recipe.finals is not None
    _refuse_plateau("finals", every.recipe.finals.training)
    for training in (every.recipe.supernet.training, every.recipe.finals.training):
        if training.get("max_steps", 0) > 0:
            training["max_steps"] = round(training["max_steps"] * len(task.train) / len(run.task.train))
    every.recipe.supernet.training["eval_strategy"] = "no"
    if (processes := trained.get("processes", 1)) > 1:  # this one's steps are of as many rows as theirs together
        accumulated = every.recipe.supernet.training.get("gradient_accumulation_steps", 1)
        every.recipe.supernet.training["gradient_accumulation_steps"] = accumulated * processes
    every.recipe.supernet.max_params = trained.get("max_params", run.recipe.supernet_max_params)
    return every


def _peers(run: Context, race: Contest) -> Lesson:
    """What the finalists teach that were trained alone; they themselves are not trained again."""
    lesson = Lesson.load(race.folder / PEERS)
    if lesson.further is None:
        raise _made_earlier(run, race.folder / PEERS)
    return dataclasses.replace(lesson, rows=with_further(lesson, len(race.train)))
