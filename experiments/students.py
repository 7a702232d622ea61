"""What a taught student gains from another method, another share of the loss, another supernet, or further rows.

    python experiments/students.py --part cells --data FOLDER [--datasets mpqa trec] [--changed share]
    python experiments/students.py --part report

On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), one uniform method is trained with
the supernet as teacher, as in finals, and one thing at a time is changed. Validation losses are the lowest of a
training; no test row is read. The csv grows by a row for each training; one that is there is not done again. A
supernet that is missing is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pandas as pd
from csv_rows import read_rows
from datasets import Dataset
from safetensors.torch import load_file, save_file
from study_data import SPLITS, rows_left
from study_parts import contest_of, do_part
from study_plan import Study
from study_runs import open_run, run_recipe
from study_tables import table

from glora_search import Recipe, Run
from glora_search.finals.contest import Contest
from glora_search.finals.finalists import Finalist
from glora_search.finals.race import Result
from glora_search.finals.rungs import Standing
from glora_search.progress import track
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.training.distillation import SOFT_LABELS
from glora_search.training.uniform import Uniform, of_paths, uniform_methods
from glora_search.vocabulary import LayerPaths

HERE = Path(__file__).resolve().parent
RATES = {
    "bbc-headlines": "0.5",
    "mpqa": "0.5",
    "trec": "1",
    "trec-fine": "2",
    "clinc150": "2",
    "tweet-emotion": "0.5",
    "sst2": "0.25",
    "stsb": "1",
}
"""Data set -> a good learning rate of LoRA with a teacher, as a factor of the study's."""
ATTENTION = ("query", "key", "value", "attention.output.dense")
KEY = (
    *("data", "seed", "method", "rate", "share", "supernet_epochs", "supernet_rate", "orders", "further"),
    *("members", "temperature"),
)
PLAIN = {
    "method": "lora",
    "share": "0.5",
    "supernet_epochs": "12",
    "supernet_rate": "0.008",
    "orders": "0",
    "further": "none",
    "members": "8",
    "temperature": "1",
}
FURTHER = 2000
"""Rows that the teacher alone labels, at most."""
DROPPED = 0.15
"""The share of words that a row is without that is made of a train row."""
CHANGES: list[dict[str, str]] = [
    {},
    {"method": "ia3", "rate": "1"},
    {"method": "ia3", "rate": "2"},
    {"method": "lora-qv"},
    {"method": "ia3+lora-attention"},
    {"share": "0.8"},
    {"supernet_epochs": "24"},
    {"supernet_rate": "0.002"},
    {"supernet_epochs": "24", "supernet_rate": "0.004"},
    {"orders": "1"},
    {"orders": "2"},
    {"orders": "0+1+2"},
    {"rate": "1"},
    {"rate": "2"},
    {"rate": "4"},
    {"further": "unlabelled"},
    {"further": "words dropped"},
    {"temperature": "2"},
    {"temperature": "0.5"},
    {"members": "32"},
    {"members": "2"},
]
"""What is changed; ``orders`` are of the train rows, and the weights of several are averaged. ``further`` rows, which
the teacher alone labels, are rows of no split, or train rows without some of their words. ``members`` are the subnets
whose mean prediction teaches; at a ``temperature`` of 2, the square roots of its probabilities do."""


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training, or of an average of several."""
    asked = dict(zip(KEY, key, strict=True))
    run, folder = supernet(asked, study, data, cache), cache / "students" / "-".join(key).replace(" ", "-")
    if asked["further"] != "none":
        rows = further_rows(run, asked["further"], asked["data"], data)
        run.context.task.data = dataclasses.replace(run.context.task.data, unlabelled=rows)
    contest = contest_of(run, folder, teacher_share=float(asked["share"]), teacher=int(asked["members"]))
    lesson = contest.lesson
    assert lesson is not None
    if asked["temperature"] != "1":
        lesson = dataclasses.replace(lesson, rows=softer(lesson.rows, float(asked["temperature"])))
        contest = dataclasses.replace(contest, lesson=lesson)
    method = METHODS[asked["method"]](contest)
    one = Finalist(method.name, method, method.params, float(asked["rate"]), taught=True)
    orders = asked["orders"].split("+")
    reached = [student(contest, one, order) for order in orders]
    found = reached[0][0]
    metric, loss = found.metric, found.loss
    if len(reached) > 1:
        metric, loss = averaged(contest, [checkpoint for _, checkpoint in reached], folder / "average")
    shutil.rmtree(folder)
    return {
        "params": method.params,
        "validation": round(metric, 4),
        "validation_loss": round(loss, 4),
        "best_step": found.best_step if len(reached) == 1 else "",
        "quarter_loss": round(min(loss for step, loss in found.losses.items() if step <= contest.first), 4),
        "teacher_loss": round(lesson.validation_loss, 4),
    }


def further_rows(run: Run, kind: str, name: str, data: Path) -> Dataset:
    """Rows without labels of a data set, see `CHANGES`."""
    recipe = run.context.recipe
    if kind == "words dropped":
        rng = np.random.default_rng(recipe.seed)
        train = pd.read_csv(recipe.data.train, dtype=str, keep_default_na=False)["text"]
        texts = [dropped(text, rng) for _ in range(FURTHER // len(train)) for text in train]
    else:
        splits = {split: getattr(recipe.data, split) for split in SPLITS}
        texts = rows_left(name, data, splits, seed=recipe.seed)["text"][:FURTHER].tolist()
    return Dataset.from_dict({"text": texts})


def softer(rows: Dataset, temperature: float) -> Dataset:
    """Train rows with the teacher's probabilities at a temperature, where 1 leaves them as they are."""

    def changed(row: dict[str, Any]) -> dict[str, Any]:
        powers = np.asarray(row[SOFT_LABELS]) ** (1 / temperature)
        return {SOFT_LABELS: powers / powers.sum()}

    return rows.map(changed, features=rows.features)


def dropped(text: str, rng: np.random.Generator) -> str:
    """A text without some of its words, but with one of them at least."""
    words = text.split()
    kept = [word for word in words if rng.random() >= DROPPED]
    return " ".join(kept or words[:1])


def student(contest: Contest, one: Finalist, order: str) -> tuple[Standing, Path]:
    """Train a finalist to the end, on the train rows in an order; how it stands, and its best checkpoint."""
    lesson = contest.lesson
    assert lesson is not None
    rows = lesson.rows if order == "0" else lesson.rows.shuffle(seed=int(order))
    own = dataclasses.replace(contest, lesson=dataclasses.replace(lesson, rows=rows), folder=contest.folder / order)
    with track("train", own.steps) as bar:
        found = own._train_one(one, own.steps, bar)
    return found, own.best(one, Result({one.name: found}, [], []))


def supernet(asked: dict[str, str], study: Study, data: Path, cache: Path) -> Run:
    """A run with the supernet that is asked for: the study's own, or one that differs in its epochs or rate."""
    cell = study.ours(asked["data"], int(asked["seed"]))
    if all(asked[name] == PLAIN[name] for name in ("supernet_epochs", "supernet_rate")):
        run = open_run(cell, study, data, cache)
    else:
        recipe = Recipe.model_validate(run_recipe(cell, study, data, cache))
        recipe.supernet.training["num_train_epochs"] = float(asked["supernet_epochs"])
        recipe.supernet.training["learning_rate"] = float(asked["supernet_rate"])
        recipe.search.trials = 2  # finals ask for a search; nobody here uses what it finds
        name = "-".join(asked[name] for name in ("data", "seed", "supernet_epochs", "supernet_rate"))
        run = Run.create(recipe, cache / "students" / "supernets" / name)
    for stage in ("supernet", "search"):
        run.do(stage)
    return run


def averaged(contest: Contest, checkpoints: list[Path], folder: Path) -> tuple[float, float]:
    """Metric and loss of the mean of several adapters' weights."""
    shutil.copytree(checkpoints[0], folder)
    files = [load_file(checkpoint / "adapter_model.safetensors") for checkpoint in checkpoints]
    means = {name: sum(file[name].float() for file in files) / len(files) for name in files[0]}
    save_file(means, folder / "adapter_model.safetensors")
    batches = length_sorted_batches(contest.validation, contest.scoring.collator, 64)
    found = evaluate(contest.load(folder), batches, contest.scoring)
    return found.metric, found.loss


def uniform(name: str, contest: Contest) -> Uniform:
    """A method of the finals."""
    (method,) = uniform_methods(contest.space, contest.max_params, [name])
    return method


def names(contest: Contest) -> list[str]:
    """The layers that are adapted."""
    return [layer.name for layer in contest.space.layers]


METHODS: dict[str, Callable[[Contest], Uniform]] = {
    "lora": functools.partial(uniform, "lora"),
    "ia3": functools.partial(uniform, "ia3"),
    "lora-qv": lambda contest: of_paths(
        contest.space,
        "LoRA r=4 on query+value",
        {name: LayerPaths(B="lora", r=4) for name in names(contest) if name.endswith(("query", "value"))},
        {},
    ),
    "ia3+lora-attention": lambda contest: of_paths(
        contest.space,
        "(IA)3, and LoRA r=1 on attention",
        {
            name: LayerPaths(A="vector", B="lora", r=1) if name.endswith(ATTENTION) else LayerPaths(A="vector")
            for name in names(contest)
        },
        {"A.vector": 5.0},
    ),
}


def keys(datasets: list[str], seeds: list[str], changed: list[str]) -> list[tuple[str, ...]]:
    """What is trained, one change after the other: all of them, or those of some settings."""
    asked = (
        {"data": data, "seed": seed, "rate": RATES[data], **PLAIN, **change}
        for change in CHANGES
        if not changed or set(changed) & change.keys()
        for seed in seeds
        for data in datasets
    )
    return [tuple(one[name] for name in KEY) for one in asked]


def report(path: Path) -> str:
    """Validation losses, a row for each change; in parentheses, LoRA's as in finals, with the same teacher and rate."""
    rows = [{name: row[name] for name in (*KEY, "validation_loss")} for row in read_rows(path)]
    losses = {tuple(row[name] for name in KEY): float(row["validation_loss"]) for row in rows}
    found = []
    for change in CHANGES[1:]:
        cells = []
        for data in RATES:
            values = []
            for row in rows:
                same_rate = "rate" in change and change == {"rate": RATES[data]}
                if (
                    row["data"] == data
                    and not same_rate
                    and all(row[name] == {**PLAIN, **change}[name] for name in {*PLAIN, *change})
                ):
                    same = {**row, **PLAIN, **({"rate": RATES[data]} if "rate" in change else {})}
                    plain = losses.get(tuple(same[name] for name in KEY))
                    values.append(f"{float(row['validation_loss']):.3f}" + (f" ({plain:.3f})" if plain else ""))
            cells.append(", ".join(values))
        if any(cells):
            found.append([", ".join(f"{name} {value}" for name, value in change.items()), *cells])
    return table(["changed", *RATES], found)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--datasets", nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--changed", nargs="+", default=[], choices=KEY[2:], help="these settings only")
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "students")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    args = parser.parse_args()
    do_part("students", args, KEY, keys(args.datasets, args.seeds, args.changed), measured, report)


if __name__ == "__main__":
    main()
