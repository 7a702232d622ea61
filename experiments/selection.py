"""How much of a search's gain is selection: subnets that were searched on half of the validation rows, on the others.

    python experiments/selection.py --part cells --data FOLDER [--datasets mpqa trec] [--minutes 60]
    python experiments/selection.py --part report

A race compares searched subnets with uniform methods on the rows that the subnets were searched on, where they are
better than on other rows. On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), the 500
validation rows are drawn into two halves; a search on either one, with the run's trials and budget, ends in its best
subnet. Its loss, with inherited weights, is given as a share of the mean loss of the search's random subnets, which
nobody chose: on the half that was searched on, and on the other one. Half of the rows select more than all do, so a
race suffers less than these figures say. No test row is read, and nothing is trained but a supernet that is missing.
The csv grows by a row for each search; one that is there is not done again.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import optuna
import pandas as pd
from csv_rows import read_rows
from study_parts import do_part
from study_plan import Study
from study_runs import open_run
from study_tables import table

from glora_search.search import best_trial, search
from glora_search.search.evaluator import SubnetEvaluator

HERE = Path(__file__).resolve().parent
DATASETS = ("bbc-headlines", "mpqa", "trec", "trec-fine", "snips")
KEY = ("data", "seed", "split", "half")


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one search."""
    name, seed, split, half = key
    cell = study.ours(name, int(seed))
    run = open_run(cell, study, data, cache)
    run.do("supernet")
    task, settings, supernet = run.context.task, run.context.recipe.search, run.context.load("supernet")
    rows = np.random.default_rng(int(split)).permutation(len(task.validation))
    halves = np.array_split(rows, 2)
    seen, unseen = (
        SubnetEvaluator(supernet, task.validation.select(part), task, settings.batch_size)
        for part in (halves if half == "first" else halves[::-1])
    )
    found = search(run.context.space, seen, trials=settings.trials, max_params=settings.max_params, seed=int(split))
    drawn = [trial for trial in found.trials if trial.values and trial.user_attrs["origin"] == "random"]
    best = best_trial(found)
    return {
        "random": len(drawn),
        "params": best.user_attrs["params"],
        "seen": round(best.user_attrs["loss"], 4),
        "random_seen": round(float(np.mean([trial.user_attrs["loss"] for trial in drawn])), 4),
        "unseen": round(unseen(best.params).loss, 4),
        "random_unseen": round(float(np.mean([unseen(trial.params).loss for trial in drawn])), 4),
    }


def report(path: Path) -> str:
    """The best subnet's loss as a share of the random ones', a row for each data set."""
    names = ("seen", "unseen", "random_seen", "random_unseen")
    rows = pd.DataFrame(read_rows(path)).astype(dict.fromkeys(names, float))
    for where in ("seen", "unseen"):
        rows[f"share_{where}"] = rows[where] / rows[f"random_{where}"]
    found = []
    for name in [*(name for name in DATASETS if name in set(rows["data"])), "mean"]:
        own = rows if name == "mean" else rows[rows["data"] == name]
        shares = own.groupby("data")[["share_seen", "share_unseen"]].mean().mean()
        lost = shares["share_unseen"] / shares["share_seen"] - 1
        found.append([name, str(len(own)), *(f"{share:.3f}" for share in shares), f"{lost:+.1%}"])
    return table(["data", "searches", "on the rows searched on", "on the others", "difference"], found)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--splits", type=int, default=2, help="how often the rows are halved")
    parser.add_argument("--minutes", type=float, default=600, help="start no search after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "selection")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    splits = [str(number) for number in range(args.splits)]
    keys = [
        (data, "0", split, half) for split, half, data in itertools.product(splits, ("first", "second"), args.datasets)
    ]
    do_part("selection", args, KEY, keys, measured, report)


if __name__ == "__main__":
    main()
