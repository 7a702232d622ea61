"""Which layers of a model a search space adapts: peft's own matching, and nothing that is trained as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import peft
from torch import nn

from glora_search.compat import (
    BaseTunerLayer,
    ExcludedModule,
    check_mamba,
    check_target_module_exists,
    include_all_linear_layers,
)
from glora_search.errors import UserError, invalid
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer
from glora_search.tuners.glora.layer import base_linear, linear_features
from glora_search.tuners.heads import HEADS
from glora_search.tuners.quantized import quantization_of
from glora_search.tuners.targets import namesakes


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
    config = peft.LoraConfig(target_modules=targets, exclude_modules=exclude, task_type=_task_type(model))
    config = include_all_linear_layers(config, model)
    saved = saved_modules(model, modules_to_save)
    layers = []
    _refuse_quantized(model, saved)
    for name, module in model.named_modules():
        matched = check_target_module_exists(config, name) if name else False
        if matched and not isinstance(matched, ExcludedModule) and name not in saved:
            base = _linear(model, module, name, config)
            layers.append(Layer(name, *linear_features(base), getattr(base, "bias", None) is not None))
    if not layers:
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        raise invalid(
            "space.targets",
            targets,
            f"names that match a layer of {type(model).__name__}, e.g. {', '.join(linear[:4]) or 'none'}"
            + (f" (exclude is {exclude!r})" if exclude else ""),
        )
    _refuse_unmatched(model, targets, layers[0].name)
    _refuse_shared(model, [layer.name for layer in layers], targets)
    return layers


def _linear(model: nn.Module, module: nn.Module, name: str, config: peft.LoraConfig) -> nn.Module:
    """The layer that an adapter can be on."""
    last = name.rpartition(".")[2]
    try:
        check_mamba(config, model, last)
    except ValueError:
        allowed = f"others: Mamba's kernels read its weight, past any adapter; set space.exclude to [{last}]"
        raise invalid("space.targets", name, allowed) from None
    try:
        return base_linear(module, name)
    except UserError as error:
        if isinstance(module, BaseTunerLayer):
            raise
        raise UserError(f"{error}; or set space.exclude to [{last}]") from error


def _refuse_unmatched(model: nn.Module, targets: str | list[str], example: str) -> None:
    """Refuse a name in a list that is no module's: misspelt, it would leave its layers out."""
    names = [f".{name}" for name, _ in model.named_modules()]
    for target in targets if isinstance(targets, list) else ():
        if not any(name.endswith(f".{target}") for name in names):
            raise invalid("space.targets", target, f"names that each match a layer, e.g. of {example}")


def _refuse_quantized(model: nn.Module, saved: set[str]) -> None:
    """Refuse to train what is quantised."""
    for name in saved:
        if (found := quantization_of(model.get_submodule(name))) is not None:
            allowed = f"modules that are not quantised; {name} is {found}: load the model with llm_int8_skip_modules"
            raise invalid("modules_to_save", name, f"{allowed} or modules_to_not_convert, [{name.split('.')[0]!r}]")


def _refuse_shared(model: nn.Module, layers: list[str], targets: str | list[str]) -> None:
    """Refuse layers whose weight or bias another module has too: folding an adapter into one would change both."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter.data_ptr() or id(parameter), []).append(name)  # no memory yet, no pointer
    sharing = [names for names in owners.values() if len(names) > 1]
    for layer in layers:
        for own in (f"{layer}.weight", f"{layer}.bias"):
            for names in (names for names in sharing if own in names):
                others = " and ".join(name for name in names if name != own)
                allowed = f"layers that share no weight: {own} is {others} too; set space.exclude to [{layer}]"
                raise invalid("space.targets", targets, allowed)


def saved_modules(model: nn.Module, modules_to_save: Sequence[str]) -> set[str]:
    """The modules that ``modules_to_save`` leaves no adapter for: those that it names, and what is inside of them.

    A classifier is always among them.
    """
    task_type = "QUESTION_ANS" if "ForQuestionAnswering" in type(model).__name__ else _task_type(model)
    saved = [*modules_to_save, *HEADS.get(task_type or "", ())]
    names = [name for name, _ in model.named_modules() if name]
    # Two ways of peft to read one name: the end of a module's name is trained, a part of it is never adapted.
    heads = tuple(f"{name}." for name in names if name.endswith(tuple(saved)))
    config = peft.LoraConfig(target_modules=[], modules_to_save=saved)
    return {
        name
        for name in names
        if f"{name}.".startswith(heads) or isinstance(check_target_module_exists(config, name), ExcludedModule)
    }


def without_saved(space: BoundSpace, model: nn.Module, modules_to_save: Sequence[str]) -> BoundSpace:
    """A bound space without the layers that are trained as they are.

    Args:
        model: the base model, to which the space was bound.
        modules_to_save: see `adaptable_layers`.

    Raises:
        UserError: it is of another model, or no layer is left.
    """
    check_fits(space, model)
    saved = saved_modules(model, modules_to_save)
    layers = [layer for layer in space.layers if layer.name not in saved]
    if not layers:
        raise invalid("modules_to_save", list(modules_to_save), "modules that leave the space a layer to adapt")
    return bound_to(model, layers, name=space.name)


def check_fits(space: BoundSpace, model: nn.Module) -> None:
    """Compare the layers of a bound space with those of a model.

    Raises:
        UserError: the model lacks a layer, or has it in another size; the message names it.
    """
    modules = dict(model.named_modules())
    for layer in space.layers:
        own = (layer.in_features, layer.out_features, layer.has_bias)
        if layer.name not in modules:
            raise invalid(
                "space", f"{space.name}, bound to a model with {layer.name}", f"one bound to this {_kind(model)}"
            )
        base = base_linear(modules[layer.name], layer.name)
        found = (*linear_features(base), getattr(base, "bias", None) is not None)
        if found != own:
            allowed = f"one bound to this {_kind(model)}, where it has {_size(*found)}"
            raise invalid("space", f"{space.name}, where {layer.name} has {_size(*own)}", allowed)


def _kind(model: nn.Module) -> str:
    return type(model).__name__


def _size(in_features: int, out_features: int, has_bias: bool) -> str:
    return f"{in_features} inputs, {out_features} outputs, and {'a' if has_bias else 'no'} bias"


def bound_to(model: nn.Module, layers: list[SpaceLayer], name: str) -> BoundSpace:
    """The bound space of these layers of a model.

    Raises:
        UserError: no path in it has a parameter.
    """
    modules = [module for module, _ in model.named_modules()]
    bound = BoundSpace(layers, name=name, namesakes=namesakes((layer.name for layer in layers), modules))
    if bound.params(bound.largest) == 0:
        biases = "" if any(layer.has_bias for layer in layers) else "; no layer has a bias, so that none has C, D or E"
        raise invalid("space.paths", name, f"paths that add parameters to this {type(model).__name__}{biases}")
    return bound


def _task_type(model: nn.Module) -> str | None:
    """peft leaves a classifier out of ``all-linear`` only where the task says that there is one."""
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
    return "SEQ_CLS" if any(head in type(model).__name__ for head in heads) else None
