"""The winner, trained again on all labelled rows: what was chosen stays, and validation rows are learned from too."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers.trainer_utils import IntervalStrategy

from glora_search.finals.contest import Contest, own_factors
from glora_search.finals.finalists import TAUGHT, Finalist, subnet_finalists
from glora_search.finals.lessons import Lesson
from glora_search.finals.training import StopAt, finalist_args, steps_trained
from glora_search.training.distillation import DistillationTrainer, with_unlabelled
from glora_search.training.loop import train


def finalist_of(contest: Contest, name: str, method: str, rate: float) -> Finalist:
    """A finalist of a race that is over.

    Args:
        name, method, rate: as the race noted them.
    """
    searched = [one for to_beat in (math.inf, -math.inf) for one in subnet_finalists(contest.subnets, to_beat)]
    one = next(one for one in (*contest.uniform, *searched) if one.method == method)
    return replace(one, rate=rate, taught=name.endswith(TAUGHT))


def refit(contest: Contest, one: Finalist, share: float, folder: Path) -> tuple[PeftModel, int]:
    """Train a finalist again, unless its training has reached its end; one that was interrupted goes on.

    It has the race's epochs, and ends at a share of its steps: no rows are left that could say when to stop.

    Args:
        contest: its train rows, and those of its lesson, are all labelled rows.
        one: the finalist.
        share: of the steps, after which it was best in the race.
        folder: of its checkpoints.

    Returns:
        The model, to be scored, and the step that it has reached.
    """
    last = max(1, round(share * contest.steps))
    if steps_trained(folder) >= last:  # it was interrupted after its end
        return contest.load(folder / f"checkpoint-{last}"), last
    args = finalist_args(contest.args, folder, rate=one.rate, steps=contest.steps)
    args.eval_strategy, args.load_best_model_at_end, args.save_total_limit = IntervalStrategy.NO, False, 1
    model = contest._begin(one)
    train(
        model,
        contest.scoring,
        contest.lesson.rows if one.taught and contest.lesson is not None else contest.train,
        contest.validation,
        args,
        description="refit",
        resume=True,
        trainer_cls=DistillationTrainer,
        callbacks=[StopAt(last)],
        lr_factors=own_factors(one, contest.lr_factors),
        teacher_share=contest.settings.teacher_share,
    )
    del model
    return contest.load(folder / f"checkpoint-{last}"), last


def with_further(lesson: Lesson, labelled: int) -> Dataset:
    """The rows of a lesson with its further ones; those without labels are about as many as the others again.

    Args:
        labelled: train rows, which are its first ones.
    """
    assert lesson.further is not None
    count = len(lesson.rows)
    rows = concatenate_datasets([lesson.rows.select(range(labelled)), lesson.further])
    if not lesson.unlabelled:
        return rows
    return with_unlabelled(rows, lesson.rows.select(range(count - lesson.unlabelled, count)))
