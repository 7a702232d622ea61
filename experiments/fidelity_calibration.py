"""Whether a little training on each candidate, before it is scored, makes inherited scores more trustworthy.

    python experiments/fidelity_calibration.py --datasets trec-fine --strategies sizes --sharing separate
    python experiments/fidelity_calibration.py --report

For the supernets that fidelity.py has kept, and the subnets that it has trained alone: the score that a subnet
inherits; the one with its head fitted anew to 500 train rows, near the supernet's head; and the one after 40 training
steps of the subnet from what it inherits, which is `search.calibration_steps: 40`. Validation rows only score.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fidelity
import numpy as np
import torch
import torch.nn.functional as F
import transformers
from csv_rows import append_rows, read_rows
from fidelity_report import alone_scores, compare, is_anchor
from fidelity_subnets import SPACE, measured_subnets
from peft import PeftModel
from torch import Tensor, nn

from glora_search.scoring import Batch, evaluate, length_sorted_batches, logits_of
from glora_search.search import Calibration, calibration_args
from glora_search.space.schema import SearchSpace
from glora_search.training.loop import training_arguments

ROWS = 500  # train rows that the head is fitted to
NEARNESS = 0.01  # weight of the squared distance from the supernet's head
STEPS = 40
WAYS = ("inherited", "head", "steps")


class Features:
    """What a head is given, and its labels, over batches."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def __call__(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """``[rows, width]`` and ``[rows]``."""
        found: list[Tensor] = []
        hook = self.head.register_forward_hook(lambda module, inputs, output: found.append(inputs[0].detach()))
        logits_of(model, batches[::-1])  # which goes from the last batch to the first
        hook.remove()
        return torch.cat(found).clone(), torch.cat([batch["labels"] for batch in batches])


def fit_head(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A linear head with the least cross-entropy, plus `NEARNESS` times the squared distance from a given one."""
    start = (weight.detach().clone(), bias.detach().clone())
    own = [value.clone().requires_grad_() for value in start]
    optimizer = torch.optim.LBFGS(own, max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(features, *own), labels)
        loss = loss + NEARNESS * sum(((value - old) ** 2).sum() for value, old in zip(own, start, strict=True))
        loss.backward()
        return loss

    optimizer.step(closure)
    return own[0].detach(), own[1].detach()


def calibrate(name: str, strategy: str, sharing: str, args: argparse.Namespace) -> None:
    """Score all measured subnets of one kept supernet in the three ways, and append the rows."""
    path = args.results / "calibration.csv"
    wanted = {"dataset": name, "strategy": strategy, "sharing": sharing, "seed": 0}
    if fidelity.is_done(path, wanted):
        return
    folder = fidelity.kept_in(args, name, strategy, sharing, 0)
    task = fidelity.load_task(name, args.data)
    space = SearchSpace.load(SPACE).bind(fidelity.fresh_model(task, 0), task.modules_to_save)
    model: Any = PeftModel.from_pretrained(fidelity.fresh_model(task, 0), str(folder), is_trainable=True)
    own = dict(model.named_parameters())
    head = next(module for key, module in model.named_modules() if key.endswith("classifier"))
    weight, bias = (own[next(key for key in own if key.endswith(f"default.{end}"))] for end in ("weight", "bias"))
    order = np.random.default_rng(0).permutation(len(task.train))
    train_rows = length_sorted_batches(task.train.select(order[:ROWS]), task.collator, 64)
    validation = length_sorted_batches(task.validation, task.collator, 64)
    settings = {**fidelity.TRAINING, "learning_rate": args.learning_rate, "per_device_train_batch_size": args.batch}
    training = calibration_args(training_arguments(settings, folder, 0), STEPS)
    calibration = Calibration(model, task.train, training, data_collator=task.collator, lr_factors=args.lr_factors)
    features, rows = Features(head), []
    for label, genome in measured_subnets(space).items():
        times = [time.perf_counter()]
        with model.folded(genome):
            inherited = evaluate(model, validation, task)
            times.append(time.perf_counter())
            x, labels = features(model, train_rows)
            fitted = fit_head(x, labels, weight, bias)
            times.append(time.perf_counter())
            x, labels = features(model, validation)
        logits = F.linear(x, *fitted)
        times.append(time.perf_counter())
        with calibration(genome):
            times.append(time.perf_counter())
            with model.folded(genome):
                trained = evaluate(model, validation, task)
        found: dict[str, Any] = {"inherited": inherited.metric, "inherited_loss": inherited.loss}
        found |= {
            "head": task.score(task.tally(logits, labels).sum(0).numpy()),
            "head_loss": float(F.cross_entropy(logits, labels)),
        }
        found |= {"steps": trained.metric, "steps_loss": trained.loss}
        seconds = np.diff(times)[[0, 1, 3]]
        found |= {f"{way}_seconds": value for way, value in zip(WAYS, seconds, strict=True)}
        rows.append({**wanted, "subnet": label, "params": space.params(genome)})
        rows[-1] |= {key: round(float(value), 5) for key, value in found.items()}
        print(rows[-1], flush=True)
    append_rows(path, rows)


def report(results: Path) -> None:
    """Print how each way ranks the subnets, and what it costs in evaluations."""
    alone, rows = read_rows(results / "standalone.csv"), read_rows(results / "calibration.csv")
    columns = ["tau", "tau_of_size", "tau_by_loss", "tau_of_size_by_loss", "regret"]
    print(f"| data set | supernet | scores | {' | '.join(columns)} | gap, mean | cost |\n|" + " --- |" * 10)
    for key in dict.fromkeys((row["dataset"], row["strategy"], row["sharing"]) for row in rows):
        truths = {subnet: np.mean(list(seeds.values())) for subnet, seeds in alone_scores(alone, key[0]).items()}
        own = [r for r in rows if (r["dataset"], r["strategy"], r["sharing"]) == key and r["subnet"] in truths]
        truth = np.array([truths[row["subnet"]] for row in own])
        uniform = np.array([is_anchor(row["subnet"]) for row in own])
        base = np.array([float(row["inherited_seconds"]) for row in own])
        for way in WAYS:
            scores, losses = (np.array([float(row[name]) for row in own]) for name in (way, f"{way}_loss"))
            facts = compare(truth, scores, losses, np.array([float(row["params"]) for row in own]))
            extra = 0 if way == "inherited" else np.array([float(row[f"{way}_seconds"]) for row in own])
            cells = [key[0], f"{key[1]}, {key[2]}", way, *(facts[name] for name in columns)]
            cells += [f"{(truth - scores)[uniform].mean():.3f}", f"{np.median(1 + extra / base):.1f}"]
            print("| " + " | ".join(str(cell) for cell in cells) + " |")


def main() -> None:
    """Calibrate kept supernets, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["trec-fine", "bbc-headlines", "sst2"])
    parser.add_argument("--strategies", nargs="+", default=["sizes"])
    parser.add_argument("--sharing", nargs="+", default=["separate"])
    parser.add_argument("--lr-factors", type=fidelity.factor, nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the supernet's")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--keep", type=Path, default=fidelity.ROOT / "runs" / "fidelity")
    parser.add_argument("--data", type=Path, default=fidelity.ROOT.parent / "shared" / "data")
    parser.add_argument("--results", type=Path, default=fidelity.RESULTS)
    args = parser.parse_args()
    args.lr_factors = dict(args.lr_factors)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    if not args.report:
        for name, strategy, sharing in itertools.product(args.datasets, args.strategies, args.sharing):
            calibrate(name, strategy, sharing, args)
    report(args.results)


if __name__ == "__main__":
    main()
