"""Who teaches best: a supernet's subnets, other methods' trainings, both, or a choice among them by validation loss.

    python experiments/teachers.py --data FOLDER --datasets bbc-headlines trec-fine --seeds 0

Methods are LoRA at two rates, (IA)3 and BitFit, each at its best checkpoint; the supernet's subnets are those of
`race.py`. A teacher is a mean of distributions on the train rows; the choice is ensemble selection by Caruana et al.
(ICML 2004). The student is always LoRA, whose best checkpoint is scored on test. Each training is a line of the csv.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import race
import torch
import transformers
from csv_rows import append_rows
from peft import get_peft_model
from torch import Tensor
from transformers import set_seed

from glora_search import SearchSpace
from glora_search.scoring import Batches, evaluate, length_sorted_batches
from glora_search.supernet.teacher import draw_members
from glora_search.supernet.train import train_supernet
from glora_search.training.distillation import DistillationTrainer, with_soft_labels
from glora_search.training.loop import train
from glora_search.training.uniform import uniform_methods

METHODS = {"LoRA": ("lora", 2e-3), "LoRA x2": ("lora", 4e-3), "(IA)3": ("ia3", 2e-3), "BitFit": ("bitfit", 2e-3)}
TEACHERS = ("supernet", "methods", "both", "chosen")
ROUNDS = 12
Said = tuple[Tensor, Tensor]
"""What a model says of the validation rows, and of the train rows: ``[rows, classes]``."""


class Students:
    """The trainings on one data set."""

    def __init__(self, name: str, seed: int, epochs: int, args: argparse.Namespace) -> None:
        self.name, self.seed, self.epochs, self.args = name, seed, epochs, args
        self.task = race.load(name, args.data, args.rows, seed)
        self.truth = torch.tensor(self.task.validation["labels"])

    def loss(self, said: Tensor) -> float:
        """Of a mean of distributions on the validation rows."""
        return float(-said[torch.arange(len(said)), self.truth].clamp_min(1e-9).log().mean())

    def trained(self, what: str, method: str, rate: float, soft: Tensor | None = None, **facts: Any) -> Said:
        """Train a method, alone or taught; its row goes to the csv, and what it says is returned."""
        task, args, started = self.task, self.args, time.perf_counter()
        set_seed(self.seed)
        base = task.model()
        space = SearchSpace.load("glora").bind(base, task.modules_to_save)
        (chosen,) = uniform_methods(space, race.BUDGET, [method])
        model = get_peft_model(base, chosen.config(task.task_type, task.modules_to_save))
        rows = task.train if soft is None else with_soft_labels(task.train, soft)
        steps = race.EPOCHS[args.rows] * -(-len(rows) // 16)
        options = {"max_steps": steps, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
        options |= {"eval_strategy": "steps", "eval_steps": steps // 16}
        options |= {"save_strategy": "steps", "save_steps": steps // 16}
        with tempfile.TemporaryDirectory() as folder:
            settings = race.arguments(folder, rate, race.EPOCHS[args.rows], self.seed, save_total_limit=1, **options)
            trainer = train(
                model, task, rows, task.validation, settings,
                description=what, lr_factors=race.HEAD, trainer_cls=DistillationTrainer,
            )  # fmt: skip
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        best = min(evaluations, key=lambda entry: entry["eval_loss"])
        test = evaluate(model, length_sorted_batches(task.test_split(), task.collator, 64), task)
        row = {"data": self.name, "rows": args.rows, "seed": self.seed, "supernet_epochs": self.epochs, "what": what}
        row |= {"teacher_loss": "", **facts, "best_step": best["step"], "validation": best[f"eval_{task.metric}"]}
        row |= {"validation_loss": best["eval_loss"], "test": test.metric, "test_loss": test.loss}
        append_rows(args.results, [row | {"seconds": round(time.perf_counter() - started, 1)}])
        return self.said(model)

    @torch.inference_mode()
    def said(self, model: Any) -> Said:
        """What a model says of both splits."""
        model.eval()
        found = []
        for rows in (self.task.validation, self.task.train):
            batches = Batches(rows, self.task.collator, 64)
            said = torch.cat([model(**batch).logits.softmax(-1) for batch in batches])
            found.append(said[torch.as_tensor(batches.order).argsort()])
        return found[0], found[1]

    def subnets(self) -> list[Said]:
        """What the subnets of a supernet say, one by one."""
        task = self.task
        base = task.model()
        space = SearchSpace.load(race.SUPERNET["space"]).bind(base, task.modules_to_save)
        options = {"task_type": task.task_type, "modules_to_save": task.modules_to_save}
        largest = race.SUPERNET["largest"]
        with tempfile.TemporaryDirectory() as folder:
            settings = race.arguments(folder, race.SUPERNET["rate"], self.epochs, self.seed)
            supernet, _ = train_supernet(
                base, space, task, task.train, task.validation, settings,
                lr_factors=race.SUPERNET_RATES, max_params=largest, **options,
            )  # fmt: skip
        members = draw_members(space, count=race.SUPERNET["members"], max_params=largest, seed=self.seed)
        found = []
        for member in members:
            with supernet.scored(member):
                found.append(self.said(supernet))
        return found

    def chosen(self, pool: list[Said]) -> list[Said]:
        """Those whose mean has the lowest validation loss: one after the other joins that betters it the most."""
        found: list[Said] = []
        for _ in range(ROUNDS):
            found.append(min(pool, key=lambda one: self.loss(mean([*found, one], 0))))
        ends = range(1, ROUNDS + 1)
        return found[: min(ends, key=lambda end: self.loss(mean(found[:end], 0)))]


def mean(said: list[Said], split: int) -> Tensor:
    """Of the validation rows (0), or of the train rows (1)."""
    return torch.stack([one[split] for one in said]).mean(0)


def main() -> None:
    """Train what teaches, then the students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the data sets", required=True)
    parser.add_argument("--datasets", nargs="+", required=True)
    parser.add_argument("--rows", type=int, choices=sorted(race.EPOCHS), default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=12, help="of the supernet")
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--results", type=Path, default=race.RESULTS / "teachers.csv")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    for seed, name in itertools.product(args.seeds, args.datasets):
        students = Students(name, seed, args.epochs, args)
        methods = [students.trained(what, method, rate) for what, (method, rate) in METHODS.items()]
        subnets = students.subnets()
        both = [(mean(methods, 0), mean(methods, 1)), (mean(subnets, 0), mean(subnets, 1))]
        pools = {"supernet": subnets, "methods": methods, "both": both, "chosen": students.chosen([*methods, *subnets])}
        for which in args.teachers:
            pool: Any = pools[which]
            loss = students.loss(mean(pool, 0))
            students.trained(f"LoRA, taught by {which}", "lora", 2e-3, mean(pool, 1), teacher_loss=loss)


if __name__ == "__main__":
    main()
