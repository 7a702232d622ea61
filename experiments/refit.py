"""Whether the winner of a race is still ahead once both learn from all labelled rows, those for validation too.

    python experiments/refit.py --part cells --data FOLDER [--datasets mpqa trec] [--minutes 60]
    python experiments/refit.py --part report

On the study's runs (500 train and 500 validation rows, 41,472 adapter parameters; see study/plan.yaml), the tuned LoRA
and the winner of ours are trained again: on the train rows (``train``), or on train and validation rows for as many
epochs. The supernet that teaches the winner is trained again before, on all rows too, as `glora-search refit` does
(``supernet``), or it is not (``all``; ``steps`` for as many steps). Each training ends at the share of its schedule at
which its validation loss was lowest in the study. They are scored on up to 2,500 rows that are in no split and are no
test rows; a data set without such rows is left out. The csv grows by a row for each training; one that is there is not
done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from csv_rows import read_rows
from datasets import Dataset, concatenate_datasets
from study_data import SPLITS, rows_left
from study_parts import contest_of, do_part
from study_plan import Cell, Study
from study_runs import open_run, teacher_of
from study_tables import table

from glora_search import Run
from glora_search.finals.contest import Contest, own_factors
from glora_search.finals.finalists import Finalist
from glora_search.finals.refit import finalist_of
from glora_search.finals.rungs import whole
from glora_search.finals.training import StopAt, finalist_args
from glora_search.run import finals
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.training.distillation import DistillationTrainer
from glora_search.training.loop import steps_for, train

HERE = Path(__file__).resolve().parent
STUDY = HERE / "results" / "study"
DATASETS = ("mpqa", "trec", "sst2", "trec-fine", "clinc150", "tweet-emotion", "wordnet", "election-tweets")
WHO = ("lora", "ours")
ROWS = {
    "train": "train rows",
    "supernet": "all rows",
    "all": "all rows; the supernet: train rows",
    "steps": "all rows, in the steps of train rows; the supernet: train rows",
}
KEY = ("data", "seed", "who", "rows")
SCORED = 2500


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training of the study, to be done again.

    Attributes:
        name, method: of the finalist.
        rate: what the learning rate is multiplied by.
        epochs: of its schedule.
        share: of the schedule, after which it ends.
    """

    name: str
    method: str
    rate: float
    epochs: float
    share: float


def planned(cell: Cell, who: str, study: Study) -> Plan:
    """What the study found: the tuned LoRA, or the winner of ours."""
    if who == "lora":
        rows = [row for row in read_rows(STUDY / "study.csv") if _is(row, cell.of("lora"))]
        best = min(rows, key=lambda row: float(row["validation_loss"] or "inf"))
        epochs = float(best["epochs"])
        rate, share = float(best["rate"]) / study.rate, float(best["best_epoch"]) / epochs
        return Plan("LoRA r=1", "LoRA r=1", rate, epochs, share)
    lines = (STUDY / "genomes.jsonl").read_text(encoding="utf-8").splitlines()
    (finalists,) = (one["finalists"] for one in map(json.loads, lines) if _is(one, cell.of("ours")))
    best = finalists[0]  # the winner
    epochs = study.epochs[cell.rows]
    steps = whole(-(-cell.rows // study.batch) * round(epochs))
    return Plan(best["name"], best["method"], float(best["rate"]), epochs, best["best_step"] / steps)


def _is(row: dict[str, Any], cell: Cell) -> bool:
    return all(str(row[name]) == value for name, value in cell.key.items())


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    name, seed, who, kind = key
    cell = study.ours(name, int(seed))
    plan, run, folder = planned(cell, who, study), open_run(cell, study, data, cache), cache / "refit" / "-".join(key)
    for stage in ("supernet", "search"):
        run.do(stage)
    task, recipe = run.context.task, run.context.recipe
    left = rows_left(name, data, {split: getattr(recipe.data, split) for split in SPLITS}, seed=recipe.seed)
    unseen = task._encoded(Dataset.from_pandas(left[:SCORED], preserve_index=False), "data.test")
    contest = contest_of(run, folder)
    one = finalist_of(contest, plan.name, plan.method, plan.rate)
    if kind == "supernet" and one.taught:
        run = supernet_of_all(run, left, cache / "refit" / f"supernet-{name}-{seed}")
    finals.write_starts(run.context, folder, contest)
    rows = [task.train] if kind == "train" else [task.train, task.validation]
    if one.taught:
        teacher = teacher_of(run, study)
        rows = [teacher.teach(split) for split in rows]
    model = fitted(contest, one, concatenate_datasets(rows), plan, same_steps=kind == "steps")
    found = evaluate(model, length_sorted_batches(unseen, task.collator, 64), task)
    shutil.rmtree(folder)
    return {
        "name": one.name,
        "params": one.params,
        "trained_rows": sum(map(len, rows)),
        "scored_rows": len(unseen),
        "score": round(found.metric, 4),
        "loss": round(found.loss, 4),
    }


def supernet_of_all(run: Run, left: pd.DataFrame, folder: Path) -> Run:
    """A run whose supernet has learned from train and validation rows; it is validated on rows that are left."""
    recipe = run.context.recipe.model_copy(deep=True)
    files = [pd.read_csv(getattr(recipe.data, split), dtype=str, keep_default_na=False) for split in SPLITS[:2]]
    folder.parent.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", pd.concat(files)), ("validation", left[-100:])):
        path = folder.with_name(f"{folder.name}-{split}.csv")
        rows.to_csv(path, index=False)
        setattr(recipe.data, split, str(path))
    found = Run.create(recipe, folder)
    found.do("supernet")
    return found


def fitted(contest: Contest, one: Finalist, rows: Dataset, plan: Plan, *, same_steps: bool) -> Any:
    """Train a finalist on rows, and end where it was best."""
    args = dataclasses.replace(contest.args, num_train_epochs=plan.epochs)
    steps = whole(steps_for(args, len(contest.train) if same_steps else len(rows)))
    own = finalist_args(args, contest.home(one), rate=one.rate, steps=steps)
    own.eval_strategy = own.save_strategy = "no"
    model = contest._begin(one)
    train(
        model,
        contest.scoring,
        rows,
        contest.validation,
        own,
        description="train",
        trainer_cls=DistillationTrainer,
        callbacks=[StopAt(round(plan.share * steps))],
        lr_factors=own_factors(one, contest.lr_factors),
        teacher_share=contest.settings.teacher_share,
    )
    return model


def report(path: Path) -> str:
    """Scores in percent, and losses: a row for each data set and what was learned from."""
    rows = {tuple(row[name] for name in KEY): row for row in read_rows(path)}
    found = []
    for seed, name, kind in itertools.product(sorted({key[1] for key in rows}), DATASETS, ROWS):
        lora = rows.get((name, seed, "lora", "all" if kind == "supernet" else kind))
        ours = rows.get((name, seed, "ours", kind))
        if lora and ours:
            scores, losses = ([float(one[which]) for one in (lora, ours)] for which in ("score", "loss"))
            cells = [f"{100 * score:.1f} ({loss:.3f})" for score, loss in zip(scores, losses, strict=True)]
            less = f"{100 * (losses[1] / losses[0] - 1):+.0f}%"
            found.append([name, seed, ROWS[kind], *cells, f"{100 * (scores[1] - scores[0]):+.1f} ({less})"])
    return table(["data", "seed", "learned from", "LoRA, tuned", "ours", "difference"], found)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=DATASETS)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "refit")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    keys = [
        (data, seed, who, kind)
        for seed, data, kind, who in itertools.product(args.seeds, args.datasets, args.rows, WHO)
        if (who, kind) != ("lora", "supernet")
    ]
    do_part("refit", args, KEY, keys, measured, report)


if __name__ == "__main__":
    main()
