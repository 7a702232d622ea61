"""How far the scores that subnets inherit from a supernet can be trusted: measured against subnets trained alone.

    python experiments/fidelity.py --datasets trec-fine --part standalone --limit 5
    python experiments/fidelity.py --datasets trec-fine --part supernets --strategies sizes fair --sharing separate
    python experiments/fidelity.py --datasets trec-fine --part retrained --strategies sizes --epochs 3 --warmup 0.2
    python experiments/fidelity.py --part report

Every finished training is appended to a csv at once, and one that is there is not done again: start the same command
until it says that nothing is left. All scores are on search-validation rows; test rows are never read.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import transformers
from csv_rows import append_rows, read_rows
from fidelity_report import write_report
from fidelity_subnets import SPACE, key_of, measured_subnets
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from glora_search.files.text import read_json, write_json
from glora_search.recipe.schema import Recipe
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.search.evaluator import SubnetEvaluator
from glora_search.space.bound import BoundSpace
from glora_search.space.schema import SearchSpace
from glora_search.supernet import SupernetConfig, SupernetTrainer, make_sampling
from glora_search.supernet.layer import SHARING
from glora_search.supernet.sampling import STRATEGIES
from glora_search.tasks.text_classification import TextClassification
from glora_search.training.loop import train, training_arguments
from glora_search.training.trainer import PathTrainer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results" / "fidelity"

TRAIN_ROWS = 2000
BUDGET = 60_000  # of the budget strategy
SPLIT_SEED = 0

TRAINING: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length",
    "save_strategy": "no",
    "use_cpu": True,
}


def data_section(name: str, folder: Path) -> dict[str, Any]:
    """A data set as a recipe's section. Where validation rows are cut from train, the share leaves about 1,000."""
    if name == "bbc-headlines":  # 2,096 headlines in all: fewer than 2,000 are left to train on
        return {"source": "bbc-headlines", "validation_fraction": 0.3, "max_train_rows": TRAIN_ROWS}
    files = {split: str(folder / name / f"{split}.csv") for split in ("train", "validation", "test")}
    if name == "sst2":
        return {"source": "csv", **files, "max_train_rows": TRAIN_ROWS}
    del files["validation"]
    return {"source": "csv", **files, "validation_fraction": 0.19, "max_train_rows": TRAIN_ROWS}


def load_task(name: str, folder: Path) -> TextClassification:
    """A data set's rows, tokenized; the splits are the same for every training."""
    recipe = {
        "name": "fidelity",
        "seed": SPLIT_SEED,
        "task": {"model": "minilm", "max_length": 64},
        "data": data_section(name, folder),
        "space": str(SPACE),
    }
    return TextClassification(Recipe.model_validate(recipe))


def fresh_model(task: TextClassification, seed: int) -> Any:
    """A base model whose head is drawn with this seed; so is what is drawn next."""
    task.recipe = task.recipe.model_copy(update={"seed": seed})
    return task.model()


def fit(
    model: Any,
    task: TextClassification,
    args: argparse.Namespace,
    epochs: float,
    seed: int,
    label: str,
    *,
    max_steps: int = -1,
    warmup_steps: float = 0.05,
    **options: Any,
) -> None:
    """Train a model with the settings that all trainings here share."""
    settings = {
        "max_steps": max_steps,
        "warmup_steps": warmup_steps,
        **TRAINING,
        "num_train_epochs": epochs,
        "learning_rate": args.learning_rate,
        "per_device_train_batch_size": args.batch,
    }
    with tempfile.TemporaryDirectory() as folder:
        training = training_arguments(settings, Path(folder), seed)
        train(model, task, task.train, task.validation, training, description=label[:16], **options)


def trained_with(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The columns that say how a subnet or a supernet was trained."""
    return {
        "seed": seed,
        "epochs": args.epochs,
        "batch": args.batch,
        "learning_rate": args.learning_rate,
        "lr_factors": factors_text(args.lr_factors),
    }


def factors_text(factors: dict[str, float]) -> str:
    """Factors of the learning rate as they stand in a file."""
    return " ".join(f"{name}={factor:g}" for name, factor in sorted(factors.items()))


# -- trained alone ---------------------------------------------------------------------------------------------------


def standalone(task: TextClassification, name: str, args: argparse.Namespace) -> Iterator[None]:
    """Train each subnet from scratch with each seed; one yield a finished training."""
    path = args.results / "standalone.csv"
    space = SearchSpace.load(SPACE).bind(fresh_model(task, SPLIT_SEED), task.modules_to_save)
    batches = length_sorted_batches(task.validation, task.collator, 64)
    for seed in args.seeds:
        for number, (label, genome) in enumerate(measured_subnets(space).items()):
            if number % args.shard[1] != args.shard[0] or (args.subnets and label not in args.subnets):
                continue
            wanted = {
                "dataset": name,
                "key": key_of(space, genome),
                **trained_with(args, seed),
            }
            if is_done(path, wanted):
                continue
            started = time.perf_counter()
            model = fresh_model(task, seed)
            config = space.to_config(genome, task_type=task.task_type, modules_to_save=task.modules_to_save or None)
            model = get_peft_model(model, config)
            options = {"trainer_cls": PathTrainer, "lr_factors": args.lr_factors}
            fit(model, task, args, args.epochs, seed, label, **options)
            scored = evaluate(model, batches, task)
            row = {
                **wanted,
                "subnet": label,
                "params": space.params(genome),
                "accuracy": round(scored.metric, 5),
                "loss": round(scored.loss, 5),
                "seconds": round(time.perf_counter() - started, 1),
            }
            append_rows(path, [row])
            print(row, flush=True)
            yield


# -- inherited -------------------------------------------------------------------------------------------------------


def supernets(task: TextClassification, name: str, args: argparse.Namespace) -> Iterator[None]:
    """Train a supernet for each strategy and sharing and score the measured subnets in it; one yield a supernet.

    All supernets get as many forward and backward passes: a strategy of several subnets a step takes fewer steps.
    """
    path = args.results / "supernets.csv"
    space = SearchSpace.load(SPACE).bind(fresh_model(task, SPLIT_SEED), task.modules_to_save)
    for seed, sharing, strategy in itertools.product(args.seeds, args.sharing, args.strategies):
        wanted = {
            "dataset": name,
            "strategy": strategy,
            "options": json.dumps(args.options, sort_keys=True),
            "sharing": sharing,
            **trained_with(args, seed),
        }
        if is_done(path, wanted):
            continue
        folder = kept_in(args, name, strategy, sharing, seed)
        done = folder / "settings.json"
        if not (done.is_file() and read_json(done)["settings"] == wanted):
            done.unlink(missing_ok=True)
            seconds = train_supernet(task, space, args, wanted, folder)
            write_json(done, {"settings": wanted, "seconds": seconds})
        model = PeftModel.from_pretrained(fresh_model(task, seed), str(folder))
        evaluator = SubnetEvaluator(model, task.validation, task)
        rows = []
        for label, genome in measured_subnets(space).items():
            scored = evaluator(genome)
            row = {"subnet": label, "key": key_of(space, genome), "params": space.params(genome)}
            row |= {"accuracy": round(scored.metric, 5), "loss": round(scored.loss, 5)}
            rows.append({**wanted, **row, "seconds": read_json(done)["seconds"]})
        append_rows(path, rows)
        print({**wanted, "seconds": rows[0]["seconds"]}, flush=True)
        yield


def train_supernet(
    task: TextClassification, space: BoundSpace, args: argparse.Namespace, wanted: dict[str, Any], folder: Path
) -> float:
    """Train a supernet and keep its weights, so that a kill while it is scored does not cost the training.

    Returns:
        How long it took, in seconds.
    """
    started = time.perf_counter()
    strategy, seed = wanted["strategy"], wanted["seed"]
    # The budget's strategy needs one; the others train the whole range, which is what is measured.
    max_params = BUDGET if strategy == "budget" else None
    sampling = make_sampling(strategy, space, seed=seed, max_params=max_params, options=args.options)
    modules = task.modules_to_save or None
    config = SupernetConfig(space=space, sharing=wanted["sharing"], task_type=task.task_type, modules_to_save=modules)
    model = get_peft_model(fresh_model(task, seed), config)
    passes = round(-(-len(task.train) // args.batch) * args.epochs)
    options = {"trainer_cls": SupernetTrainer, "sampling": sampling, "lr_factors": args.lr_factors}
    options["max_steps"] = passes // len(sampling(0))
    fit(model, task, args, args.epochs, seed, f"{strategy} {wanted['sharing']}", **options)
    model.save_pretrained(str(folder))
    return round(time.perf_counter() - started, 1)


def kept_in(args: argparse.Namespace, name: str, strategy: str, sharing: str, seed: int) -> Path:
    """Where a supernet's weights are kept, for scoring and for retraining; not committed."""
    return Path(args.keep / f"{name}-{strategy}-{sharing}-{seed}")


# -- retrained -------------------------------------------------------------------------------------------------------


def retrained(task: TextClassification, name: str, args: argparse.Namespace) -> Iterator[None]:
    """Train subnets on from the weights that they inherit; one yield a finished training."""
    path = args.results / "retrained.csv"
    space = SearchSpace.load(SPACE).bind(fresh_model(task, SPLIT_SEED), task.modules_to_save)
    batches = length_sorted_batches(task.validation, task.collator, 64)
    subnets = measured_subnets(space)
    for seed, sharing, strategy in itertools.product(args.seeds, args.sharing, args.strategies):
        folder = kept_in(args, name, strategy, sharing, seed)
        for label in args.subnets or subnets:
            genome = subnets[label]
            wanted = {
                "dataset": name,
                "strategy": strategy,
                "sharing": sharing,
                "seed": seed,
                "subnet": label,
                "epochs": args.epochs,
                "batch": args.batch,
                "learning_rate": args.learning_rate,
                "lr_factors": factors_text(args.lr_factors),
                "warmup": args.warmup,
                "new_head": args.new_head,
            }
            if is_done(path, wanted):
                continue
            supernet = PeftModel.from_pretrained(fresh_model(task, seed), str(folder))
            config, weights = supernet.subnet_config(genome), supernet.subnet_state_dict(genome)
            config.inference_mode = False
            model = get_peft_model(fresh_model(task, seed), config)
            if args.new_head:
                drawn = get_peft_model_state_dict(model)
                weights |= {key: value for key, value in drawn.items() if "glora_" not in key}
            set_peft_model_state_dict(model, weights)
            before = evaluate(model, batches, task)
            options = {"lr_factors": args.lr_factors, "warmup_steps": args.warmup}
            fit(model, task, args, args.epochs, seed, label, **options)
            after = evaluate(model, batches, task)
            row = {
                **wanted,
                "params": space.params(genome),
                "inherited": round(before.metric, 5),
                "accuracy": round(after.metric, 5),
                "loss": round(after.loss, 5),
            }
            append_rows(path, [row])
            print(row, flush=True)
            yield


def is_done(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether a training with these settings is in the file."""
    return any(all(row[name] == str(value) for name, value in wanted.items()) for row in read_rows(path))


PARTS = {"standalone": standalone, "supernets": supernets, "retrained": retrained}


def factor(text: str) -> tuple[str, float]:
    """One ``kind=factor``."""
    name, _, value = text.partition("=")
    return name, float(value)


def number(text: str) -> float:
    """A number that stands in a file as it was written."""
    return int(text) if text.isdigit() else float(text)


def main() -> None:
    """Do one part, as far as the limit says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "report"], required=True)
    parser.add_argument("--datasets", nargs="+", default=["trec-fine"], choices=["trec-fine", "bbc-headlines", "sst2"])
    parser.add_argument("--limit", type=int, default=None, help="trainings to do now, at most")
    parser.add_argument("--minutes", type=float, default=None, help="start no training after so many minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=number, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--lr-factors", type=factor, nargs="*", default=[], help="e.g. vector=5 head=2")
    parser.add_argument("--subnets", nargs="+", default=None, help="only these")
    parser.add_argument("--shard", type=int, nargs=2, default=[0, 1], help="part I of N of the subnets, e.g. 0 2")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES))
    parser.add_argument("--sharing", nargs="+", default=list(SHARING), choices=list(SHARING))
    parser.add_argument("--options", type=json.loads, default={}, help="of the strategies, as JSON")
    parser.add_argument("--warmup", type=float, default=0.05, help="retrained: share of the steps")
    parser.add_argument("--new-head", action="store_true", help="retrained: inherit the paths, not the head")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "fidelity", help="folder for supernets' weights")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the csv files")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    args.lr_factors = dict(args.lr_factors)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    if args.part == "report":
        write_report(args.results)
        return
    started, done = time.monotonic(), 0
    for name in args.datasets:
        for _ in PARTS[args.part](load_task(name, args.data), name, args):
            done += 1
            late = args.minutes is not None and time.monotonic() - started > 60 * args.minutes
            if late or done == args.limit:
                print("stopped at the limit; there may be more to do")
                return
    print("nothing is left to do")


if __name__ == "__main__":
    main()
