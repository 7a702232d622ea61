"""Whether searched subnets beat uniform methods on validation rows that neither their search nor their training saw.

    python experiments/unseen.py --part cells --data FOLDER [--datasets mpqa trec] [--minutes 60]
    python experiments/unseen.py --part report

On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), the 500 validation rows are drawn
into two halves. Subnets are searched on one half. The best one is trained with the supernet as teacher, as in finals,
with inherited weights and from scratch; so are LoRA and (IA)3. The half that was searched on also chooses the
checkpoint, which is then scored on the other half. Only the learning rate was chosen on all validation rows: that of
LoRA without a teacher, which subnets share in a race. No test row is read. The csv grows by a row for each training;
one that is there is not done again. A run's supernet and search are done where they are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import optuna
import pandas as pd
from csv_rows import read_rows
from datasets import Dataset
from study_parts import contest_of, do_part
from study_plan import Study
from study_runs import open_run
from study_tables import table

from glora_search import Run
from glora_search.finals.contest import Contest
from glora_search.finals.finalists import Finalist, Subnet, subnet_finalists
from glora_search.finals.race import Result
from glora_search.progress import track
from glora_search.run import finals
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.search import best_trial, search
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.training.uniform import uniform_methods

HERE = Path(__file__).resolve().parent
RATES = {"bbc-headlines": 0.5, "mpqa": 0.5, "trec": 0.5}
"""Data set -> the learning rate at which LoRA was the best one alone in its race, as a factor of the study's."""
WHO = ("inherited", "scratch", "lora", "ia3")
KEY = ("data", "seed", "half", "who")


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    name, seed, half, who = key
    run = open_run(study.ours(name, int(seed)), study, data, cache)
    for stage in ("supernet", "search"):
        run.do(stage)
    rows = run.context.task.validation
    halves = np.array_split(np.random.default_rng(int(seed)).permutation(len(rows)), 2)
    seen, unseen = (rows.select(part) for part in (halves if half == "first" else halves[::-1]))
    folder = cache / "unseen" / "-".join(key)
    contest = dataclasses.replace(contest_of(run, folder), validation=seen)
    one = dataclasses.replace(_entrant(run, folder, contest, who, seen), taught=True)
    if who != "ia3":
        one = dataclasses.replace(one, rate=RATES[name])
    with track("train", contest.steps) as bar:
        found = contest._train_one(one, contest.steps, bar)
    model = contest.load(contest.best(one, Result({one.name: found}, [], [])))
    other = evaluate(model, length_sorted_batches(unseen, contest.scoring.collator, 64), contest.scoring)
    shutil.rmtree(folder)
    return {
        "params": one.params,
        "seen": round(found.loss, 4),
        "seen_metric": round(found.metric, 4),
        "unseen": round(other.loss, 4),
        "unseen_metric": round(other.metric, 4),
        "best_step": found.best_step,
    }


def _entrant(run: Run, folder: Path, contest: Contest, who: str, rows: Dataset) -> Finalist:
    """A uniform method, or the best subnet of a search on these rows, whose start is written."""
    if who in ("lora", "ia3"):
        (method,) = uniform_methods(contest.space, contest.max_params, [who])
        return Finalist(method.name, method, method.params)
    task, settings = run.context.task, run.context.recipe.search
    scorer = SubnetEvaluator(run.context.load("supernet"), rows, task, settings.batch_size)
    best = best_trial(
        search(
            run.context.space,
            scorer,
            trials=settings.trials,
            max_params=settings.max_params,
            seed=run.context.recipe.seed,
        )
    )
    subnets = [Subnet(best.params, best.user_attrs["params"], best.user_attrs["loss"])]
    finals.write_starts(run.context, folder, dataclasses.replace(contest, subnets=subnets))
    return subnet_finalists(subnets, math.inf if who == "inherited" else -math.inf)[0]


def report(path: Path) -> str:
    """Validation losses on both halves, a row for each data set that is finished; the means of both directions."""
    rows = pd.DataFrame(read_rows(path)).astype({"seen": float, "unseen": float})
    groups = {str(name): own for name, own in rows.groupby("data") if len(own) % (2 * len(WHO)) == 0}
    means = {name: own.groupby("who")[["seen", "unseen"]].mean() for name, own in groups.items()}
    found = [[name, *(_pair(means[name].loc[who]) for who in WHO)] for name in RATES if name in means]
    return table(["data", "subnet, inherited", "subnet, from scratch", "LoRA", "(IA)3"], found)


def _pair(losses: pd.Series) -> str:
    return f"{losses['seen']:.3f}, {losses['unseen']:.3f}"


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "unseen")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    keys = list(itertools.product(args.datasets, args.seeds, ("first", "second"), WHO))
    do_part("unseen", args, KEY, keys, measured, report)


if __name__ == "__main__":
    main()
