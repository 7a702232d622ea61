"""Which layers of a model a search space adapts: peft's own matching, and no layer twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import peft
from torch import nn

from glora_search.compat import (
    SEQ_CLS_HEAD_NAMES,
    ExcludedModule,
    check_target_module_exists,
    include_all_linear_layers,
)
from glora_search.errors import invalid
from glora_search.tuners.glora.layer import base_linear, linear_features


class Layer(NamedTuple):
    """A linear layer that can be adapted: its full module name, its size, and whether it has a bias."""

    name: str
    in_features: int
    out_features: int
    has_bias: bool


def adaptable_layers(
    model: nn.Module, targets: str | list[str], exclude: str | list[str] | None, modules_to_save: Sequence[str]
) -> list[Layer]:
    """The layers that ``target_modules`` and ``exclude_modules`` of peft leave, in the model's order.

    Args:
        modules_to_save: modules that are trained as they are, in peft's semantics; what is inside of them is left out.

    Raises:
        UserError: no layer matches, or one that matches cannot be adapted.
    """
    task_type = _task_type(model)
    saved = tuple(modules_to_save) + (SEQ_CLS_HEAD_NAMES if task_type == "SEQ_CLS" else ())
    heads = [name for name, _ in model.named_modules() if name.endswith(saved)] if saved else []
    config = peft.LoraConfig(target_modules=targets, exclude_modules=exclude, task_type=task_type)
    config = include_all_linear_layers(config, model)
    layers = []
    for name, module in model.named_modules():
        matched = check_target_module_exists(config, name) if name else False
        inside = any(name == head or name.startswith(f"{head}.") for head in heads)
        if matched and not isinstance(matched, ExcludedModule) and not inside:
            base = base_linear(module, name)
            layers.append(Layer(name, *linear_features(base), getattr(base, "bias", None) is not None))
    if not layers:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise invalid(
            "space.targets",
            targets,
            f"names that match a layer of {type(model).__name__}, e.g. {', '.join(linear[:4]) or 'none'}"
            + (f" (exclude is {exclude!r})" if exclude else ""),
        )
    return layers


def _task_type(model: nn.Module) -> str | None:
    """peft leaves a classifier out of ``all-linear`` only where the task says that there is one."""
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
    return "SEQ_CLS" if any(head in type(model).__name__ for head in heads) else None
