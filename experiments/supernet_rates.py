"""At which learning rate a supernet predicts best: the validation loss of its subnets' mean prediction.

    python experiments/supernet_rates.py --part cells --data FOLDER [--minutes 60]
    python experiments/supernet_rates.py --part report

Supernets are those of the study's runs (500 train rows, 41,472 adapter parameters, 12 epochs; see study/plan.yaml), and
that of the quickstart, but for the learning rate. LoRA's best loss and rate are those of the study's table, where it
has the set and the seed. No test row is read. The csv grows by a row for each supernet, and what is there is not
trained again.

The first rows, of seed 0, are from the exploration that the script was made from. Those of 2e-3 on BBC headlines, MPQA
and TREC are of the same supernets as in spaces.csv, and that of the quickstart is its committed result.
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
from study_tables import table

from glora_search import Recipe, Run
from glora_search.training.loop import steps_for

HERE = Path(__file__).resolve().parent
QUICKSTART = "quickstart"
DATASETS = ("bbc-headlines", "mpqa", "sst2", "snips", "trec", "trec-fine", "clinc150", "stsb", QUICKSTART)
RATES = ("0.0005", "0.002", "0.004", "0.008", "0.016")
KEY = ("data", "rate", "seed")


def measured(key: tuple[str, str, str], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one supernet."""
    name, rate, seed = key
    if name == QUICKSTART:
        recipe = Recipe.load(QUICKSTART, [f"seed={seed}"])
    else:
        cell = study.ours(name, int(seed))
        recipe = Recipe.model_validate(run_recipe(cell, study, data, cache))
    recipe.supernet.training["learning_rate"] = float(rate)
    run = Run.create(recipe, folder := cache / "runs" / "-".join(key))
    run.do("supernet")
    worth = teacher_of(run, study).evaluate(run.context.task.validation)
    steps = steps_for(run.context.arguments(recipe.supernet.training, folder), len(run.context.task.train))
    shutil.rmtree(folder)
    return {"steps": steps, "teacher": round(worth.metric, 4), "teacher_loss": round(worth.loss, 4)}


def report(path: Path, study: Path) -> str:
    """The losses, a row for each data set, beside the tuned LoRA's of the study."""
    rows = pd.DataFrame(read_rows(path)).astype({"teacher_loss": float, "rate": float, "seed": int, "steps": int})
    wide = rows.pivot(index=["data", "seed"], columns="rate", values="teacher_loss")
    found = []
    lora = pd.read_csv(study).query("method == 'lora' and rows == 500 and budget == 41472 and encoder == 'minilm'")
    for name, seed in sorted(wide.index, key=lambda key: (key[1], DATASETS.index(key[0]))):
        values = ["" if pd.isna(loss) else f"{loss:.3f}" for loss in wide.loc[name, seed]]
        steps = rows.loc[(rows["data"] == name) & (rows["seed"] == seed), "steps"].iloc[0]
        tuned = lora[(lora["data"] == name) & (lora["seed"] == seed)].sort_values("validation_loss")
        best = f"{tuned.iloc[0]['validation_loss']:.3f} (at {tuned.iloc[0]['rate']:g})" if len(tuned) else ""
        found.append([name, str(seed), str(steps), *values, best])
    return table(["data", "seed", "steps", *(f"{rate:g}" for rate in wide), "LoRA alone, tuned"], found)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--minutes", type=float, default=600, help="start no supernet after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "supernet_rates")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "supernet_rates")
    args = parser.parse_args()
    path = args.results / "supernet_rates.csv"
    if args.part == "report":
        print(report(path, HERE / "results" / "study" / "study.csv"))
        return
    transformers.logging.set_verbosity_error()
    study = Study.load(HERE / "study" / "plan.yaml")
    keys = [(data, rate, seed) for seed, data, rate in itertools.product(args.seeds, DATASETS, RATES)]
    figures = functools.partial(measured, study=study, data=args.data, cache=args.cache)
    fill(path, KEY, keys, figures, args.cache, args.minutes)


if __name__ == "__main__":
    main()
