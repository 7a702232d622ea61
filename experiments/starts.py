"""How a searched subnet should begin in finals: with inherited weights or from scratch, and at which learning rate.

    python experiments/starts.py --part cells --data FOLDER [--datasets mpqa trec] [--minutes 60]
    python experiments/starts.py --part report

On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), the search's best subnet and LoRA
are each trained with the supernet as teacher, as in finals: a subnet with inherited weights or from scratch. Validation
losses are the lowest of a training; no test row is read. The csv grows by a row for each training; one that is there is
not done again. A run's supernet and search are done where they are missing.
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

import pandas as pd
from csv_rows import read_rows
from study_parts import contest_of, do_part
from study_plan import Study
from study_runs import open_run
from study_tables import table

from glora_search.finals.contest import Contest
from glora_search.finals.finalists import Finalist, Subnet, subnet_finalists
from glora_search.progress import track
from glora_search.run import finals
from glora_search.training.uniform import uniform_methods

HERE = Path(__file__).resolve().parent
DATASETS = ("mpqa", "trec", "bbc-headlines", "clinc150", "trec-fine", "snips", "sst2", "tweet-emotion")
STARTS = ("inherited", "scratch", "lora", "lora-inherited", "ia3-inherited")
UNIFORM = {"lora-inherited": "LoRA r=1", "ia3-inherited": "(IA)3"}
"""Start -> the uniform method that is trained on with the supernet's weights."""
RATES = ("0.5", "1", "2")
KEY = ("data", "seed", "start", "rate")


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    name, seed, start, rate = key
    cell = study.ours(name, int(seed))
    run = open_run(cell, study, data, cache)
    for stage in ("supernet", "search"):
        run.do(stage)
    folder = cache / "starts" / "-".join(key)
    contest = contest_of(run, folder)
    if start in UNIFORM:
        genome = contest.space.uniform_methods()[UNIFORM[start]]
        scored = next(trial for trial in run.view.study().trials if trial.user_attrs["origin"] == UNIFORM[start])
        subnet = Subnet(genome, scored.user_attrs["params"], scored.user_attrs["loss"])
        contest = dataclasses.replace(contest, subnets=[subnet])
    finals.write_starts(run.context, folder, contest)
    one = dataclasses.replace(entrant(contest, start), rate=float(rate), taught=True)
    with track("train", contest.steps) as bar:
        found = contest._train_one(one, contest.steps, bar)
    teacher = contest.lesson.validation_loss if contest.lesson is not None else None
    shutil.rmtree(folder)
    return {
        "params": one.params,
        "validation": round(found.metric, 4),
        "validation_loss": round(found.loss, 4),
        "best_step": found.best_step,
        "teacher_loss": teacher,
        "untrained": round(contest.subnets[0].loss, 4),
    }


def entrant(contest: Contest, start: str) -> Finalist:
    """The search's best subnet, or LoRA."""
    if start == "lora":
        (method,) = uniform_methods(contest.space, contest.max_params, ["lora"])
        return Finalist(method.name, method, method.params)
    return subnet_finalists(contest.subnets, -math.inf if start == "scratch" else math.inf)[0]


def report(path: Path) -> str:
    """Validation losses, a row for each data set."""
    rows = pd.DataFrame(read_rows(path)).astype({"validation_loss": float, "rate": float})
    wide = rows.pivot(index=["data", "seed"], columns=["start", "rate"], values="validation_loss")
    columns = [(start, rate) for start in STARTS for rate in sorted(set(rows["rate"])) if (start, rate) in wide]
    found = []
    for name, seed in sorted(wide.index, key=lambda key: (key[1], DATASETS.index(key[0]))):
        own = rows[(rows["data"] == name) & (rows["seed"] == seed)]
        losses = [wide.loc[(name, seed), column] for column in columns]
        values = ["" if pd.isna(loss) else f"{loss:.3f}" for loss in losses]
        found.append([name, seed, f"{float(own['teacher_loss'].iloc[0]):.3f}", *values])
    return table(["data", "seed", "teacher", *(f"{start} x{rate:g}" for start, rate in columns)], found)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--rates", nargs="+", default=list(RATES), help="factors of the finals' learning rate")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "starts")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    keys = [
        (data, seed, start, rate)
        for seed, data, rate, start in itertools.product(args.seeds, args.datasets, args.rates, args.starts)
    ]
    do_part("starts", args, KEY, keys, measured, report)


if __name__ == "__main__":
    main()
