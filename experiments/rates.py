"""Learning rates by kind of path: whether the factors of `lr_factors: auto` carry over from one encoder to another.

    python experiments/rates.py --part cells --data FOLDER [--minutes 60]
    python experiments/rates.py --part report

A uniform method is trained with all factors 1, with those of auto and its own, and with these times 1/4, 1/2, 2 and 4;
the head's is always the same. A supernet is trained with all factors 1 and with those of auto, and is worth what the
mean of eight of its subnets is on validation. All trainings have the learning rate 2e-3, 500 train rows and ten epochs;
of a method's, the checkpoint with the lowest validation loss counts. No test row is read. The csv grows by a row for
each training; one that is there is not done again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pandas as pd
import transformers
from csv_rows import fill, read_rows
from peft import get_peft_model
from study_data import recipe_of
from study_plan import Cell, Study
from study_training import KeepBest, settings_of
from transformers import set_seed

from glora_search import Recipe, SearchSpace
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.supernet.train import train_supernet
from glora_search.tasks import make_task
from glora_search.training.loop import train, training_arguments
from glora_search.training.trainer import PathTrainer
from glora_search.training.uniform import uniform_methods
from glora_search.vocabulary import LR_FACTORS

HERE = Path(__file__).resolve().parent
DATASETS = ("bbc-headlines", "mpqa", "trec-fine")
METHODS = ("ia3", "hira", "lora+vectors", "bitfit", "supernet")
RATE, EPOCHS = 2e-3, 10
SCALES = ("one", "0.25", "0.5", "1", "2", "4")
FIGURES = ["validation", "validation_loss"]
KEY = ("encoder", "data", "seed", "method", "scale")


def cells(encoders: list[str]) -> Iterator[tuple[str, ...]]:
    """The keys of all trainings."""
    for encoder, data, method in itertools.product(encoders, DATASETS, METHODS):
        for scale in ("one", "1") if method == "supernet" else SCALES:
            yield encoder, data, "0", method, scale


def factors_of(scale: str, own: Mapping[str, float]) -> dict[str, float]:
    """The learning-rate factors of a scale.

    Args:
        own: what a method has besides those of auto.
    """
    head = {"head": LR_FACTORS["head"]}
    if scale == "one":
        return head
    return {name: factor * float(scale) for name, factor in {**LR_FACTORS, **own}.items()} | head


def train_cell(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    encoder, name, seed, method, scale = key
    budget = study.primary_budget[encoder]
    cell = Cell(encoder, name, 500, int(seed), budget, method)
    task = make_task(Recipe.model_validate({**recipe_of(cell, study, data, cache), "space": "glora-ranks"}))
    settings = settings_of(RATE, EPOCHS, study.batch)
    set_seed(cell.seed)
    base = task.model()
    space = SearchSpace.load("glora-ranks").bind(base, task.modules_to_save)
    with tempfile.TemporaryDirectory() as folder:
        if method == "supernet":
            args = training_arguments({**settings, "save_strategy": "no"}, Path(folder), cell.seed)
            options = {"task_type": task.task_type, "modules_to_save": task.modules_to_save}
            options |= {"max_params": study.teacher_size * budget, "lr_factors": factors_of(scale, {})}
            supernet, _ = train_supernet(base, space, task, task.train, task.validation, args, **options)
            members = draw_members(space, count=study.members, max_params=options["max_params"], seed=cell.seed)
            worth = Teacher(supernet, members, task).evaluate(task.validation)
            found = {"validation": worth.metric, "validation_loss": worth.loss}
        else:
            [own] = uniform_methods(space, budget, [method])
            model = get_peft_model(base, own.config(task.task_type, task.modules_to_save))
            settings |= {"save_strategy": "no", "eval_strategy": "epoch"}
            args, kept = training_arguments(settings, Path(folder), cell.seed), KeepBest(model)
            options = {"trainer_cls": PathTrainer, "lr_factors": factors_of(scale, own.lr_factors), "callbacks": [kept]}
            train(model, task, task.train, task.validation, args, description="train", **options)
            best = kept.best or {}
            found = {"validation": best.get(f"eval_{task.metric}"), "validation_loss": best.get("eval_loss")}
    return found


def report(table: Path) -> str:
    """Validation accuracy in percent, and loss, of each method by scale."""
    rows = pd.DataFrame(read_rows(table)).astype({"validation": float, "validation_loss": float})
    rows["shown"] = [
        f"{100 * one:.1f} ({loss:.3f})" for one, loss in zip(rows["validation"], rows["validation_loss"], strict=True)
    ]
    wide = rows.pivot(index=["encoder", "method", "data"], columns="scale", values="shown").fillna("-")
    wide = wide[[scale for scale in SCALES if scale in wide]].reset_index()
    lines = [wide.columns, ["---"] * len(wide.columns), *wide.itertuples(index=False)]
    return "\n".join([*(f"| {' | '.join(map(str, line))} |" for line in lines), "", *verdicts(rows)])


def verdicts(rows: pd.DataFrame) -> Iterator[str]:
    """For each encoder and method, how far factor 1 and auto are from the best of the five scales, by its loss."""
    five = rows[(rows["scale"] != "one") & (rows["method"] != "supernet")]
    best = five.loc[five.groupby(["encoder", "method", "data"])["validation_loss"].idxmin()]
    for (encoder, method), own in best.groupby(["encoder", "method"], sort=False):
        found = rows[(rows["encoder"] == encoder) & (rows["method"] == method)]
        found = found.set_index(["scale", "data"])[FIGURES]
        told = []
        for scale, name in (("one", "factor 1"), ("1", "auto")):
            gap = (found.loc[scale] if scale in found.index else found.iloc[:0]) - own.set_index("data")[FIGURES]
            gap = gap.dropna()
            if len(gap):
                points, loss = 100 * gap["validation"].mean(), gap["validation_loss"].mean()
                told.append(f"{name} {points:+.1f} points, loss {loss:+.3f} ({len(gap)} sets)")
        yield f"- {encoder}, {method}, beside the best of the five: {'; '.join(told)}"


def main() -> None:
    """Do one part."""
    study = Study.load(HERE / "study" / "plan.yaml")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--encoders", nargs="+", choices=list(study.primary_budget), default=["minilm"])
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "rates")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "rates")
    args = parser.parse_args()
    table = args.results / "rates.csv"
    if args.part == "report":
        print(report(table))
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    measured = functools.partial(train_cell, study=study, data=args.data, cache=args.cache / "splits")
    fill(table, KEY, cells(args.encoders), measured, args.cache, args.minutes)


if __name__ == "__main__":
    main()
