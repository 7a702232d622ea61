"""What averaged weights bring: a moving average of what a finalist trains, scored beside its weights themselves.

    python experiments/averages.py --part cells --data FOLDER [--minutes 60]
    python experiments/averages.py --part report

On the study's runs (500 train rows, 41,472 adapter parameters; see study/plan.yaml), a finalist is trained as in a
race, with its evaluations and the rule that ends it, alone or with the supernet as teacher. At each evaluation, the
exponential moving averages of the trained weights are scored too; the training itself does not change. Validation
losses are the lowest of a training; no test row is read. The csv grows by a row for each training.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from csv_rows import read_rows
from students import METHODS
from study_parts import contest_of, do_part
from study_plan import Study
from study_runs import open_run
from study_tables import table
from torch import nn
from transformers import TrainerCallback

from glora_search.finals.contest import Contest, own_factors
from glora_search.finals.finalists import Finalist
from glora_search.finals.training import StopWhereOver, finalist_args
from glora_search.scoring import evaluate, length_sorted_batches
from glora_search.training.distillation import DistillationTrainer
from glora_search.training.loop import train

HERE = Path(__file__).resolve().parent
DECAYS = (0.9, 0.95, 0.98)
KEY = ("data", "seed", "method", "rate", "taught")
TRAININGS = (
    ("mpqa", "1", "lora", "1", "no"),
    ("bbc-headlines", "1", "lora", "0.5", "no"),
    ("mpqa", "0", "lora", "0.5", "yes"),
    ("bbc-headlines", "0", "ia3", "1", "yes"),
    ("mpqa", "0", "lora", "0.5", "no"),
    ("bbc-headlines", "0", "lora", "0.5", "no"),
    ("tweet-emotion", "0", "lora", "0.5", "no"),
    ("trec", "0", "lora", "0.5", "no"),
    ("sst2", "0", "lora", "0.25", "no"),
    ("trec", "0", "lora", "1", "yes"),
    ("bbc-headlines", "0", "lora", "0.5", "yes"),
    ("tweet-emotion", "0", "ia3", "1", "yes"),
    ("sst2", "0", "lora", "0.25", "yes"),
    ("trec-fine", "0", "lora", "2", "yes"),
)
"""Of `KEY`; rates are factors of the study's."""


class Averages(TrainerCallback):
    """Keeps moving averages of what is trained, and scores them at each evaluation.

    The decay at step t is at most (1 + t) / (10 + t), as in TensorFlow's ``ExponentialMovingAverage``, so that an
    average soon forgets how the training began.

    Attributes:
        best: decay, 0 for the weights themselves -> the lowest validation loss, the metric there, and the step.
    """

    def __init__(self, model: nn.Module, contest: Contest) -> None:
        self.model, self.scoring = model, contest.scoring
        self.batches = length_sorted_batches(contest.validation, contest.scoring.collator, 64)
        self.trained = [value for value in model.parameters() if value.requires_grad]
        self.means = {decay: [value.detach().clone() for value in self.trained] for decay in DECAYS}
        self.best: dict[float, tuple[float, float, int]] = {}

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the averages."""
        for decay, mean in self.means.items():
            kept = min(decay, (1 + state.global_step) / (10 + state.global_step))
            for own, value in zip(mean, self.trained, strict=True):
                own.lerp_(value, 1 - kept)

    @torch.no_grad()
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Score them in place of the weights, which are put back."""
        step = state.global_step
        self._note(0.0, metrics["eval_loss"], metrics[f"eval_{self.scoring.metric}"], step)
        weights, training = [value.detach().clone() for value in self.trained], self.model.training
        self.model.eval()
        for decay, mean in self.means.items():
            self._put(mean)
            found = evaluate(self.model, self.batches, self.scoring)
            self._note(decay, found.loss, found.metric, step)
        self._put(weights)
        self.model.train(training)

    def _put(self, values: list[torch.Tensor]) -> None:
        for own, value in zip(self.trained, values, strict=True):
            own.copy_(value)

    def _note(self, decay: float, loss: float, metric: float, step: int) -> None:
        if math.isfinite(loss) and loss < self.best.get(decay, (math.inf, 0.0, 0))[0]:
            self.best[decay] = (loss, metric, step)


def measured(key: tuple[str, ...], study: Study, data: Path, cache: Path) -> dict[str, Any]:
    """The figures of one training."""
    asked = dict(zip(KEY, key, strict=True))
    taught = asked["taught"] == "yes"
    run = open_run(study.ours(asked["data"], int(asked["seed"])), study, data, cache)
    folder = cache / "averages" / "-".join(key)
    contest = contest_of(run, folder, **({} if taught else {"teacher": 0}))
    method = METHODS[asked["method"]](contest)
    one = Finalist(method.name, method, method.params, float(asked["rate"]), taught=taught)
    args = finalist_args(contest.args, folder / "training", rate=one.rate, steps=contest.steps)
    args.save_strategy = "no"
    model = contest._begin(one)
    averages = Averages(model, contest)
    train(
        model,
        contest.scoring,
        contest.lesson.rows if contest.lesson is not None else contest.train,
        contest.validation,
        args,
        trainer_cls=DistillationTrainer,
        callbacks=[StopWhereOver(contest.ends_from), averages],
        lr_factors=own_factors(one, contest.lr_factors),
        teacher_share=contest.settings.teacher_share,
    )
    shutil.rmtree(folder)
    found: dict[str, Any] = {}
    for decay, (loss, metric, step) in averages.best.items():
        found |= {f"loss_{decay:g}": round(loss, 4), f"validation_{decay:g}": round(metric, 4), f"step_{decay:g}": step}
    return found


def report(path: Path) -> str:
    """Validation loss and metric of the weights themselves and of each average, and the means of the ratios."""
    rows, cells = read_rows(path), []
    for row in rows:
        scores = [f"{float(row[f'loss_{d:g}']):.3f} ({row[f'validation_{d:g}']})" for d in (0.0, *DECAYS)]
        taught = " + teacher" if row["taught"] == "yes" else ""
        cells.append([f"{row['data']}, {row['seed']}", f"{row['method']} x{row['rate']}{taught}", *scores])
    ratios = [[float(row[f"loss_{d:g}"]) / float(row["loss_0"]) - 1 for row in rows] for d in DECAYS]
    if rows:
        cells.append(["mean", "", "", *(f"{sum(own) / len(own):+.1%}" for own in ratios)])
    return table(["data, seed", "finalist", "its weights", *(f"averages, {d:g}" for d in DECAYS)], cells)


def main() -> None:
    """Do one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["cells", "report"], required=True)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data", help="as in study.py")
    parser.add_argument("--minutes", type=float, default=600, help="start no training after so many minutes")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "averages")
    parser.add_argument("--cache", type=Path, default=HERE.parent / "runs" / "study", help="the study's")
    do_part("averages", parser.parse_args(), KEY, TRAININGS, measured, report)


if __name__ == "__main__":
    main()
