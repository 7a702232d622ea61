"""The training arguments of a recipe: checked fields of transformers' TrainingArguments."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, TypeAdapter, ValidationError, ValidationInfo
from transformers import TrainingArguments

from glora_search.errors import invalid
from glora_search.recipe.data import check_number
from glora_search.vocabulary import check_lr_factors

TRAINING_TYPES = {
    field.name: typing.get_type_hints(TrainingArguments)[field.name]
    for field in dataclasses.fields(TrainingArguments)
    if field.init and field.name != "output_dir"
}


TRAINING_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "num_train_epochs": 3,
    "warmup_steps": 0.05,
    "logging_steps": 20,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "log_level_replica": "error",
    "dataloader_pin_memory": torch.cuda.is_available(),
}
"""Defaults that differ from those of TrainingArguments."""

STOPPING: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": None,
    "restore_callback_states_from_checkpoint": True,
}
"""The arguments of early stopping; the metric is the task's. Resumed training restores the patience counter."""

EVALUATED: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "eval_delay": 0,
    "eval_on_start": False,  # no checkpoint is of step 0
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,  # the best and the last: with 1, Trainer removes the last one at the end of a rung
    "save_only_model": False,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "greater_is_better": False,
}
"""What a race needs of the training arguments; the numbers of steps are each finalist's own."""

TRAINING_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
        (lambda value: value >= 1, "an int >= 1"),
    ),
    "num_train_epochs": (lambda value: 0 < value < math.inf, "a number above 0"),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps"),
        (lambda value: 0 <= value < math.inf, "a number >= 0"),
    ),
    "batch_eval_metrics": (lambda value: not value, "false: a metric is made of all batches together"),
    "eval_do_concat_batches": (bool, "true: a metric is made of all batches together"),
    "max_steps": (lambda value: value == -1 or value >= 1, "an int >= 1, or -1 to train for num_train_epochs"),
}
"""Ranges that TrainingArguments does not check."""

SHORT = {
    "lr": ["learning_rate"],
    "epochs": ["num_train_epochs"],
    "steps": ["max_steps"],
    "batch_size": ["per_device_train_batch_size"],
    "bs": ["per_device_train_batch_size"],
}
"""What people call some fields."""

OTHER_MACHINE = {"other_machine": True}
"""Validation context for a recipe from another machine: arguments that need that machine's hardware, such as ``bf16``,
are not errors."""


def shown(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Training arguments as a message shows them: without what gives access to the hub."""
    return {name: "..." if name.endswith("_token") else value for name, value in settings.items()}


def _check_training(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, dict):
        raise invalid("training", value, "a mapping of TrainingArguments fields")
    checked: dict[str, Any] = {}
    for name, setting in value.items():
        if name not in TRAINING_TYPES:
            close = SHORT.get(str(name)) or difflib.get_close_matches(str(name), TRAINING_TYPES, n=3, cutoff=0.5)
            hint = f", e.g. {', '.join(close)}" if close else ""
            raise invalid(
                f"training.{name}", setting, f"a field of transformers.TrainingArguments except output_dir{hint}"
            )
        check_number(f"training.{name}", setting, TRAINING_TYPES[name])
        try:
            checked[name] = TypeAdapter(TRAINING_TYPES[name]).validate_python(setting)
        except ValidationError as error:
            raise invalid(f"training.{name}", setting, error.errors()[0]["msg"]) from None
        fits, allowed = TRAINING_RANGES.get(name, (lambda value: True, ""))
        if checked[name] is not None and not fits(checked[name]):
            raise invalid(f"training.{name}", setting, allowed)
    if info.context == OTHER_MACHINE:
        return checked
    try:
        TrainingArguments(**{"output_dir": "unused", **TRAINING_DEFAULTS, **checked})
    except Exception as error:  # transformers has no type of its own for what it refuses
        raise invalid("training", shown(checked), f"what transformers.TrainingArguments takes ({error})") from None
    return checked


Training = Annotated[dict[str, Any], BeforeValidator(_check_training)]


def _check_lr_factors(value: Any) -> Any:
    return value if value is None else check_lr_factors(value)


LrFactors = Annotated[dict[str, float], BeforeValidator(_check_lr_factors)]
"""Kind of path, kind of one path, or ``head`` (everything else that is trained) -> multiplier of the learning rate.
``auto`` is `LR_FACTORS`."""
