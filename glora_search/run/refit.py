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
from glora_search.errors import UserError
from glora_search.files.text import write_json
from glora_search.finals.contest import PEERS, Contest
from glora_search.finals.finalists import Finalist
from glora_search.finals.lessons import Lesson
from glora_search.finals.refit import finalist_of, refit, with_further
from glora_search.ranking import is_finite
from glora_search.run import supernet
from glora_search.run.context import Context
from glora_search.run.finals import contest_of, teach, write_starts
from glora_search.run.merge import merge_adapter
from glora_search.scoring import evaluate, has_diverged

WORSE = 1.1
"""Validation rows that it has learned from have no loss so many times as high as before, unless a training fails."""
TRAINED = "trained"
"""The folder of what is only needed on the way."""


def refit_winner(run: Context, folder: Path) -> dict[str, Any]:
    """Train the winner on train and validation rows; leaves ``refitted/``, an adapter folder, and ``refitted/merged``.

    The supernet that taught it, or whose weights it inherits, is trained on all of these rows before. No rows are left
    to score the result on, but for the test split, which it does not read.

    Raises:
        UserError: it has diverged, or has a far higher loss on the validation rows than before it learned from them.
    """
    raced, settings = run.view.result("finals"), run.recipe.finals
    assert settings is not None
    row = next(row for row in raced["finalists"] if row["name"] == raced["winner"])
    race = contest_of(run, run.folder / "finals", settings)
    one = finalist_of(race, row["name"], row["method"], row["rate"])
    contest = _on_all_rows(run, race, one, raced, folder / TRAINED)
    model, steps = refit(contest, one, row["best_step"] / race.steps, folder / "checkpoints")
    scored = evaluate(model, run.validation, run.task)
    if has_diverged(model) or not is_finite(scored.metric, scored.loss) or scored.loss > WORSE * row["validation_loss"]:
        loss = f"the loss on the validation rows is {scored.loss:.4f}, and was {row['validation_loss']:.4f} before"
        raise UserError(
            f"refit: {loss} the adapter has learned from them: it is not written. {run.folder / 'finals'} has the "
            f"adapter as it was"
        )
    rows, params = len(run.task.train_rows) + len(run.task.validation), adapter_params(model)
    model.save_pretrained(str(folder))
    run.task.processor.save_pretrained(str(folder))
    facts = {**run.facts(params, row["validation"]), "trained on": f"{rows:,} rows, those for validation too"}
    write_card(folder, run.task.model_path, facts)
    merged = merge_adapter(run, folder.name, folder / "merged")
    shutil.rmtree(folder / TRAINED, ignore_errors=True)
    return {
        "winner": raced["winner"],
        "params": params,
        "rows": rows,
        "steps": steps,
        "max_abs_logit_difference": merged["max_abs_logit_difference"],
    }


def _on_all_rows(run: Context, race: Contest, one: Finalist, raced: dict[str, Any], folder: Path) -> Contest:
    """The race's contest with all labelled rows to learn from, and what the finalist needs of a supernet.

    Args:
        folder: gets the supernet, what it teaches, and what the finalist inherits.
    """
    every = _context(run, folder)
    by_supernet = one.taught and raced["teacher"]["by"] != "finalists"
    settings = race.settings.model_copy(update={} if by_supernet else {"teacher": 0})
    if (by_supernet or one.inherits) and not (folder / "supernet" / "done.json").is_file():
        (folder / "supernet").mkdir(parents=True, exist_ok=True)
        write_json(folder / "supernet" / "done.json", supernet.train(every, folder / "supernet"))
    folder.mkdir(parents=True, exist_ok=True)
    teach(every, folder, settings)
    contest = contest_of(every, folder, settings)
    if one.inherits:
        write_starts(every, folder, contest)
    if one.taught and not by_supernet:
        contest.lesson = _peers(run, race)
    return contest


def _context(run: Context, folder: Path) -> Context:
    """The run with its validation rows among its train rows, and another folder for what is made from these."""
    task = copy.copy(run.task)
    further = task.sequences(task.validation)
    task.train, task.train_rows = (
        concatenate_datasets([rows, more]) for rows, more in ((task.train, further), (task.train_rows, task.validation))
    )
    _ = run.space  # it lies in the run folder
    every = copy.copy(run)
    every.task, every.folder = task, folder
    return every


def _peers(run: Context, race: Contest) -> Lesson:
    """What the finalists teach that were trained alone; they themselves are not trained again."""
    lesson = Lesson.load(race.folder / PEERS)
    if lesson.further is None:
        again = run.view.command("finals", "--again")
        raise UserError(f"refit: an earlier version has made {race.folder / PEERS}; run first: {again}")
    return dataclasses.replace(lesson, rows=with_further(lesson, len(race.train)))
