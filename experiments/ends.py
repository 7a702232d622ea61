"""What a training that ends early misses, and what that saves: finalists trained to the end, without the race's rule.

    python experiments/ends.py --part cells --data FOLDER [--datasets mpqa trec] [--minutes 60]
    python experiments/ends.py --part report

On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), LoRA and (IA)3 are trained as in
finals, but each to the end of its schedule. From its validation losses follows where the rule of the race would have
ended it (`Standing.over`). Validation figures are of the checkpoint with the lowest loss; no test row is read. The csv
grows by a row for each training; one that is there is not done again. A run's supernet and search are done where they
are missing.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
from csv_rows import read_rows
from study_parts import contest_of, do_part
from study_plan import Study
from study_runs import open_run
from study_tables import table

from glora_search.finals.contest import Contest
from glora_search.finals.finalists import Finalist
from glora_search.finals.training import standing
from glora_search.progress import track
from glora_search.training.uniform import uniform_methods

HERE = Path(__file__).resolve().parent
DATASETS = ("mpqa", "trec", "bbc-headlines", "tweet-emotion", "sst2", "snips", "clinc150", "trec-fine")
"""Those that the method was developed on."""
WHO = ("lora-taught x1", "lora-taught x0.5", "ia3-taught x1", "lora x0.5", "lora x1", "lora-taught x2", "lora x2")
"""Method, taught or not, and its learning rate as a factor of the finals'."""
KEY = ("data", "seed", "who")


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    name, seed, who = key
    run = open_run(study.ours(name, int(seed)), study, data, cache)
    for stage in ("supernet", "search"):
        run.do(stage)
    folder = cache / "ends" / "-".join(key).replace(" ", "-")
    contest = contest_of(run, folder)
    one = finalist(contest, who)
    with (
        mock.patch.object(Contest, "ends_from", property(lambda self: self.steps)),
        track("train", contest.steps) as bar,
    ):
        whole = contest._train_one(one, contest.steps, bar)
    ends = end_of(whole.losses, contest.first)
    early = standing(contest._checkpoints(one), contest.scoring, ends, contest.first)
    assert early is not None
    shutil.rmtree(folder)
    return {
        "steps": contest.steps,
        "ends": ends,
        "early_loss": round(early.loss, 4),
        "early_metric": round(early.metric, 4),
        "loss": round(whole.loss, 4),
        "metric": round(whole.metric, 4),
        "best_step": whole.best_step,
        "losses": " ".join(f"{loss:.4f}" for loss in whole.losses.values()),
    }


def finalist(contest: Contest, who: str) -> Finalist:
    """A uniform method as it races."""
    kind, rate = who.split(" x")
    (method,) = uniform_methods(contest.space, contest.max_params, [kind.removesuffix("-taught")])
    return Finalist(method.name, method, method.params, rate=float(rate), taught=kind.endswith("-taught"))


def end_of(losses: Mapping[int, float], first: int) -> int:
    """The step at which a training ends by the race's rule: from the first rung on, once its lowest loss lies in the
    first half of its steps so far.

    Args:
        losses: step -> validation loss, of a whole training.
        first: the step of the first rung.
    """
    for step in sorted(losses):
        best = min((other for other in losses if other <= step), key=losses.__getitem__)
        if step >= first and 2 * best <= step:
            return step
    return max(losses)


def report(path: Path) -> str:
    """A row for each training that the rule ends; then what all of them miss and save."""
    numbers = dict.fromkeys(("steps", "ends", "early_loss", "early_metric", "loss", "metric"), float)
    rows = pd.DataFrame(read_rows(path)).astype(numbers)
    rows["taught"] = rows["who"].str.contains("taught")
    ended = rows[rows["ends"] < rows["steps"]]
    found = [
        [
            f"{row['data']}, {row['seed']}",
            row["who"],
            f"{row['ends']:.0f} of {row['steps']:.0f}",
            f"{row['early_loss']:.3f} ({row['early_metric']:.3f})",
            f"{row['loss']:.3f} ({row['metric']:.3f})",
        ]
        for _, row in ended.sort_values(["taught", "data", "seed", "who"]).iterrows()
    ]
    lines = [table(["data, seed", "finalist", "ends", "loss (metric)", "trained to the end"], found), ""]
    for taught, own in rows.groupby("taught"):
        over = own[own["ends"] < own["steps"]]
        better = over[over["loss"] < over["early_loss"]]
        change = (own["loss"] / own["early_loss"] - 1).mean()
        lines.append(
            f"{'taught' if taught else 'alone'}: {len(own)} trainings, {len(over)} end early, {len(better)} of these "
            f"would find a lower loss later; trained to the end, the loss of all is {change:+.1%} on the mean, for "
            f"{own['steps'].sum() / own['ends'].sum() - 1:+.0%} of the steps"
        )
    return "\n".join(lines)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS))
    parser.add_argument("--who", nargs="+", default=list(WHO), choices=WHO)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "ends")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    keys = list(itertools.product(args.datasets, args.seeds, args.who))
    keys.sort(key=lambda key: args.who.index(key[2]))
    do_part("ends", args, KEY, keys, measured, report)


if __name__ == "__main__":
    main()
