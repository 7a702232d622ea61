"""What a run costs, in units of one LoRA training: an estimate before it starts, and the sum at its end.

The unit is the training of the LoRA that a run is compared with: a finalist's, else the baseline's.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import TrainingArguments

from glora_search.finals.contest import planned_trainings
from glora_search.finals.finalists import uniform_finalists
from glora_search.finals.rungs import PARTS, whole
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.folder import RunFolder
from glora_search.run.launch import processes
from glora_search.run.stages import STAGES
from glora_search.scoring import Batches, on_device, shortest_first
from glora_search.supernet import make_sampling
from glora_search.training.baselines import baseline_settings, lora_within
from glora_search.training.loop import steps_for, training_arguments
from glora_search.training.uniform import uniform_methods

SUPERNET_STEP = 1.3
"""A subnet's step in steps of LoRA r=1, rounded up: docs/fidelity.md measures .72 to 1.13 steps of LoRA r=4."""
TIMED = 3
"""How often a step is timed, after one that is not."""


@dataclass(frozen=True)
class Estimate:
    """What the stages of a run take.

    Attributes:
        seconds: command -> about how long it takes one process of this machine.
        unit: seconds of one LoRA training.
        processes: that share the work.
    """

    seconds: dict[str, float]
    unit: float
    processes: int = 1

    def minutes(self, seconds: float) -> float:
        """How long work takes that the processes share."""
        return seconds / self.processes / 60

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        parts = ", ".join(f"{name} {seconds / self.unit:.1f}" for name, seconds in self.seconds.items())
        shared = f" on {self.processes} processes" if self.processes > 1 else ""
        minutes = max(1, round(self.minutes(total)))
        return f"about {minutes} min in all{shared}, or {total / self.unit:.1f} LoRA trainings: {parts}"


def estimate(run: Context) -> Estimate:
    """Time a few steps of LoRA and a few batches of an evaluation, and count what the recipe asks for.

    Conversion of the data and what the libraries take to start are not counted.
    """
    step, forward = _timed(run)
    return count(run, step, forward, processes())


def said(run: Context) -> str:
    """The estimate in words; without one where this machine has no room for the timing: stages may ask for less."""
    try:
        return f"cost: {estimate(run)}"
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        return f"cost: no estimate ({str(error).splitlines()[0]})"


def count(run: Context, step: float, forward: float, together: int = 1) -> Estimate:
    """The estimate.

    Args:
        step: seconds of an optimizer step of LoRA, at the supernet's batch size.
        forward: seconds of scoring a row.
        together: processes that share the work; their trainings have so many batches in a step, but for the finals'.
    """
    recipe, task, space = run.recipe, run.task, run.space
    rows, scored = len(task.train), forward * len(task.validation)
    supernet = _args(recipe.supernet.settings(task.metric), recipe)
    per_row = step / _batch(supernet)
    sampling = make_sampling(
        recipe.supernet.sampling,
        space,
        seed=recipe.seed,
        max_params=recipe.supernet_max_params,
        options=recipe.supernet.sampling_options,
    )

    def training(settings: dict[str, Any]) -> float:
        args = _args(settings, recipe)
        return per_row * _batch(args) * together * steps_for(args, rows, together)

    found = {
        "train-supernet": training(recipe.supernet.training) * len(sampling(0)) * SUPERNET_STEP,
        "search": recipe.search.trials * (scored + recipe.search.calibration_steps * step * SUPERNET_STEP),
    }
    baseline = training(baseline_settings(recipe, rows, together))
    if recipe.finals is not None:
        args = _args(recipe.finals.training, recipe)
        unit = per_row * _batch(args) * whole(steps_for(args, rows)) + PARTS * scored
        taught = recipe.finals.teacher
        others = len(task.train_rows) + len(task.data.unlabelled or ())
        methods = uniform_methods(space, recipe.search.max_params, recipe.finals.methods)
        uniform = uniform_finalists(methods, recipe.finals.rates)
        trainings = planned_trainings(uniform, recipe.finals.subnets, teacher=taught > 0)
        found["finals"] = trainings * unit + taught * (scored + forward * others)
    else:
        found["retrain"] = training(recipe.retrain.training) * SUPERNET_STEP
        unit = baseline
    if recipe.baselines:
        found["baselines"] = baseline
    for name in found:
        if name != "train-supernet":
            found[name] *= 1 + len(recipe.search.budgets)
    return Estimate(found, unit, together)


def _timed(run: Context) -> tuple[float, float]:
    """Seconds of an optimizer step of LoRA at the supernet's batch size, and of scoring a row."""
    recipe, task = run.recipe, run.task
    args = _args(recipe.supernet.training, recipe)
    config = lora_within(run.space, None, task.task_type, task.modules_to_save)
    base = task.model()
    if args.gradient_checkpointing:
        base.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)
    model = run.placed(base if config is None else get_peft_model(base, config))
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    size = args.per_device_train_batch_size
    scored_size = recipe.search.batch_size
    batch = on_device(Batches(_some(task.train, size), task.collator, size)[0], run.device)
    scored = on_device(Batches(_some(task.validation, scored_size), task.collator, scored_size)[0], run.device)

    def train() -> None:
        model.train()
        with torch.autocast(run.device.type, dtype, enabled=args.bf16 or args.fp16):
            loss = model(**batch)["loss"]
        loss.backward()

    @torch.inference_mode()
    def score() -> None:
        model.eval()
        model(**scored)

    return (
        _median(train, run.device) * args.gradient_accumulation_steps,
        _median(score, run.device) / len(scored["labels"]),
    )


def _args(settings: dict[str, Any], recipe: Recipe) -> TrainingArguments:
    return training_arguments(settings, Path("unused"), recipe.seed)


def _batch(args: TrainingArguments) -> int:
    """Rows of an optimizer step."""
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps)


def _some(rows: Dataset, count: int) -> Dataset:
    """A batch of rows, of all lengths that the split has."""
    return rows.select(shortest_first(rows)[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)])


def _median(work: Callable[[], None], device: torch.device) -> float:
    taken = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


def spent(view: RunFolder) -> float | None:
    """What a run has cost but for the test, in LoRA trainings; None where it has trained no LoRA."""
    taken = view.seconds()
    seconds = {
        stage.command: taken[stage.command] * (view.done(stage.name) or {}).get("processes", 1)
        for stage in STAGES.values()
        if stage.name != "test" and stage.command in taken
    }
    finals, baselines = view.done("finals"), view.done("baselines")
    unit = None
    if finals is not None:
        unit = finals.get("seconds_per_training")
        if unit is None and finals.get("trainings"):  # all was trained before a kill
            unit = finals["seconds"] / finals["trainings"]
        if unit:  # alone, a training takes less than beside those of the other workers on this machine
            together = finals["trainings"] * unit / finals["seconds"] if finals["seconds"] else 1.0
            unit /= min(finals.get("workers", 1), max(1.0, together))
    elif baselines is not None and baselines["list"]:
        unit = seconds["baselines"] / len(baselines["list"])
    return sum(seconds.values()) / unit if unit else None
