"""Which search space should be the default: by the teacher that its supernet is, and by the subnet that a search finds.

    python experiments/spaces.py --part cells --data FOLDER [--seeds 0 1] [--minutes 60]
    python experiments/spaces.py --part report

For each shipped space, a supernet and a search as in the study's runs (500 train rows, 41,472 adapter parameters; see
study/plan.yaml), but for the supernet's learning rate, which is that of their finals. A teacher is the mean prediction
of eight subnets; the best subnet has its inherited weights. Both are scored on validation; no test row is read. The csv
grows by a row for each supernet; one that is there is not trained again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
import transformers
from csv_rows import fill, read_rows
from study_plan import Study
from study_runs import run_recipe, teacher_of

from glora_search import Recipe, Run

HERE = Path(__file__).resolve().parent
SPACES = ("glora", "glora-ranks", "lora-ranks", "glora-paper")
DATASETS = ("bbc-headlines", "mpqa", "trec")
KEY = ("space", "data", "seed")
LOSSES = {"teacher_loss": "teacher", "best_loss": "best subnet"}


def measured(key: tuple[str, str, str], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one supernet."""
    space, name, seed = key
    cell = study.ours(name, int(seed))
    recipe = Recipe.model_validate({**run_recipe(cell, study, data, cache), "space": space, "finals": None})
    recipe.supernet.training["learning_rate"] = study.rate
    run = Run.create(recipe, folder := cache / "runs" / "-".join(key))
    run.do("supernet")
    run.do("search")
    worth = teacher_of(run, study).evaluate(run.context.task.validation)
    best = run.view.result("search")["best"]
    found = {"teacher": worth.metric, "teacher_loss": worth.loss, "params": best["params"]}
    found |= {"best": best["validation"], "best_loss": best["validation_loss"]}
    shutil.rmtree(folder)
    return found


def report(table: Path) -> str:
    """Accuracy in percent, and loss, of teachers and best subnets; each the mean of a data set's seeds."""
    rows = pd.DataFrame(read_rows(table)).astype(dict.fromkeys(("teacher", "best", *LOSSES), float))
    lines = []
    for loss, name in LOSSES.items():
        score = loss.removesuffix("_loss")
        wide = rows.pivot_table(index="space", columns="data", values=[score, loss], sort=False)
        for column in (score, loss):
            wide[column, "mean"] = wide[column].mean(axis=1)
        shown = (100 * wide[score]).map("{:.1f}".format) + wide[loss].map(" ({:.3f})".format)
        lines += ["", f"| {name} | {' | '.join(shown.columns)} |", "| --- " * (len(shown.columns) + 1) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in shown.itertuples(name=None)]
    return "\n".join(lines[1:])


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--minutes", type=float, default=600, help="start no supernet after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "spaces")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "spaces")
    args = parser.parse_args()
    table = args.results / "spaces.csv"
    if args.part == "report":
        print(report(table))
        return
    transformers.logging.set_verbosity_error()
    study = Study.load(HERE / "study" / "plan.yaml")
    keys = [(space, data, seed) for seed, data, space in itertools.product(args.seeds, DATASETS, SPACES)]
    figures = functools.partial(measured, study=study, data=args.data, cache=args.cache)
    fill(table, KEY, keys, figures, args.cache, args.minutes)


if __name__ == "__main__":
    main()
