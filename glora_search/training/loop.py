"""Training a model with transformers' Trainer: the settings that all stages share, a bar, and going on after a kill."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)

from glora_search.errors import UserError, invalid
from glora_search.files.text import read_json, write_text
from glora_search.progress import Bar, say, track
from glora_search.recipe.arguments import TRAINING_DEFAULTS
from glora_search.scoring import Scoring, shortest_first, summed
from glora_search.training.trainer import PathTrainer

PROCESSES = "processes"
"""The file beside the checkpoints that says how many processes train, where it is not one."""
PREPARED = ("forward", "_original_forward", "_is_accelerate_prepared")
"""What accelerate sets on a model that it has prepared; one that has them is not prepared again."""
STATE = "trainer_state.json"
"""What Trainer writes last of a checkpoint."""
CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "adapter_model.safetensors")


class TrainingProgress(TrainerCallback):
    """Shows a Trainer's steps on a bar, with the latest loss."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.note = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed training starts where it was."""
        self.bar.start_at(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep the loss for the bar."""
        if logs and "loss" in logs:
            self.note = f"loss {float(logs['loss']):.3f}"

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One optimizer step is done."""
        self.bar.advance(1, self.note)


def train(
    model: PreTrainedModel | nn.Module,
    scoring: Scoring,
    rows: Dataset,
    validation: Dataset,
    args: TrainingArguments,
    *,
    description: str = "",
    resume: bool = False,
    trainer_cls: type[Trainer] = PathTrainer,
    **trainer_options: Any,
) -> Trainer | None:
    """Train a model; what the arguments evaluate is evaluated on the validation rows, by the metric too.

    Args:
        scoring: the collator and the metric.
        rows: to learn from, with ``labels``.
        args: as in ``Trainer``. Where its bar is off (``disable_tqdm``), ours is shown. Which of two values of the
            metric is better is known from the scoring.
        description: for the progress bar; without one there is no bar.
        resume: go on from the last whole checkpoint in ``args.output_dir``, if there is one. Checkpoints are the
            caller's to remove, once the result is safe.
        trainer_cls: `PathTrainer` or another Trainer; ``trainer_options`` are passed to it.

    Returns:
        The trainer, after training; None where the model has nothing to train.

    Raises:
        UserError: the checkpoint cannot be read, or another number of processes has made it.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return None
    if str(args.metric_for_best_model).removeprefix("eval_").endswith(scoring.metric):
        args = copy.copy(args)
        args.greater_is_better = scoring.direction == "maximize"
    trainer = trainer_cls(
        model=model,
        args=args,
        train_dataset=rows,
        eval_dataset=validation.select(shortest_first(validation)),  # hardly any padding
        data_collator=scoring.collator,
        preprocess_logits_for_metrics=lambda logits, labels: scoring.tally(_first(logits), labels),
        compute_metrics=lambda found: {scoring.metric: scoring.score(summed(scoring, found.predictions.astype(float)))},
        **trainer_options,
    )
    last = last_checkpoint(Path(args.output_dir)) if resume else None
    if resume:
        together = args.world_size * max(1, args.n_gpu)
        _note_processes(Path(args.output_dir), together, last, writes=trainer.is_world_process_zero())
    if last is not None:
        if trainer.is_world_process_zero():
            _find_best_beside(Path(last))
        trainer.accelerator.wait_for_everyone()
        if description:
            say(f"{description}: resuming from {Path(last).name}", "dim")
    trainer.remove_callback(PrinterCallback)
    with unprepared(model):
        if not args.disable_tqdm or not description:
            _go(trainer, last)
            return trainer
        with track(description, total_steps(trainer)) as bar:
            trainer.add_callback(TrainingProgress(bar))
            _go(trainer, last)
    return trainer


@contextmanager
def unprepared(model: nn.Module) -> Iterator[None]:
    """A block of training before which no Trainer has prepared the model, and after which it is called as before: in
    its own precision, as it will be once it is loaded."""
    own: dict[str, Any] = model.__dict__
    kept = {name: own.pop(name) for name in PREPARED if name in own}
    try:
        yield
    finally:
        for name in PREPARED:
            own.pop(name, None)
        own.update(kept)


def _go(trainer: Trainer, checkpoint: str | None) -> None:
    if trainer.args.torch_compile:
        torch.compiler.reset()  # its limit of graphs is one for all trainings of a process
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)  # a supernet reaches it: docs/compatibility.md
    try:
        if checkpoint is not None and _has_stopped(Path(checkpoint)):
            trainer.state = TrainerState.load_from_json(str(Path(checkpoint) / STATE))
            trainer._load_best_model()
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:  # torch loads numbers and no code
        raise UserError(f"{checkpoint}: damaged, or it would run code; remove this folder, and resume") from error
    trainer.accelerator.wait_for_everyone()  # before one of them removes the checkpoints


def _has_stopped(checkpoint: Path) -> bool:
    """Whether the training had already ended there, since evaluations did not better it: Trainer would go on."""
    noted = read_json(checkpoint / STATE).get("stateful_callbacks", {}).get(EarlyStoppingCallback.__name__)
    if not isinstance(noted, dict):
        return False
    return bool(noted["attributes"]["early_stopping_patience_counter"] >= noted["args"]["early_stopping_patience"])


def _first(outputs: Any) -> torch.Tensor:
    """The logits, of a model that has more to say than those."""
    logits: torch.Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits


def training_arguments(settings: Mapping[str, Any], folder: Path, seed: int) -> TrainingArguments:
    """A recipe's settings, on top of `recipe.TRAINING_DEFAULTS`."""
    return TrainingArguments(**{"output_dir": str(folder), "seed": seed, **TRAINING_DEFAULTS, **settings})


def total_steps(trainer: Trainer) -> int:
    """The optimizer steps of a whole training."""
    return steps_of(trainer.args, len(trainer.get_train_dataloader()))


def steps_for(args: TrainingArguments, rows: int, processes: int = 1) -> int:
    """The optimizer steps of a training on so many rows, by processes with one device each, or by one with several."""
    size = args.train_batch_size * processes
    return steps_of(args, rows // size if args.dataloader_drop_last else -(-rows // size))


def steps_of(args: TrainingArguments, batches: int) -> int:
    """The optimizer steps of a training, given the batches of an epoch."""
    if args.max_steps > 0:
        return int(args.max_steps)
    per_epoch = max(1, -(-batches // args.gradient_accumulation_steps))
    return math.ceil(args.num_train_epochs * per_epoch)


def _note_processes(folder: Path, count: int, last: str | None, *, writes: bool) -> None:
    """Note beside the checkpoints how many processes train, or devices of one: another number would take other rows for
    the same steps."""
    note = folder / PROCESSES
    noted = int(note.read_text()) if note.is_file() else 1
    if last is not None and noted != count:
        raise invalid("processes", count, f"{noted}, which have trained up to {last}; to train anew, remove {folder}")
    if writes and noted != count:
        write_text(note, str(count))


def _find_best_beside(checkpoint: Path) -> None:
    """Let a checkpoint know the best one by where it lies now: Trainer forgets a best one whose folder has moved."""
    path = checkpoint / STATE
    state = read_json(path)
    best = state.get("best_model_checkpoint")
    beside = checkpoint.parent / Path(best or "").name
    if best and beside.is_dir() and str(beside) != best:
        moved = {**state, "best_model_checkpoint": str(beside)}
        write_text(path, json.dumps(moved, indent=2) + "\n")  # not write_json: Trainer reads NaN, and no null


def last_checkpoint(folder: Path) -> str | None:
    """The latest checkpoint that was written to its end; a kill can leave a half-written one."""
    found = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return str(max(found, key=lambda path: int(path.name.rpartition("-")[2]))) if found else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_json(checkpoint / STATE)
    except (OSError, ValueError):
        return False
    return all((checkpoint / name).is_file() for name in CHECKPOINT_FILES)
