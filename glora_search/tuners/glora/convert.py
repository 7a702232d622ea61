"""Between per-layer GLoRA and peft's stock formats, without any loss.

Each function takes a model's adapter and gives the config and the weights in the other format, as
``peft.convert_to_lora`` does: for ``get_peft_model`` and ``set_peft_model_state_dict``, or for `save_adapter`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from glora_search.errors import invalid
from glora_search.tuners.glora.config import GLoraConfig
from glora_search.tuners.glora.layer import GLoraLayer
from glora_search.tuners.targets import exact_targets
from glora_search.vocabulary import PATHS, TIED, path_shapes

Weights = dict[str, Tensor]
"""A state dict in the names of a saved adapter: ``base_model.model.<layer>.glora_<path>.<tensor> -> tensor``."""

LARGER = ("none", "constant", "vector", "lora")
"""Kinds in the order in which each can express all those before it."""


def to_stock(model: PeftModel, adapter_name: str | None = None) -> tuple[peft.GloraConfig, Weights]:
    """An adapter as peft's own uniform GLoRA, which plain peft loads without this package.

    Every path takes the largest kind that any layer has, and the largest rank: a vector ``a`` is ``Xd[:, 0] = a,
    Xu[0] = 1``, a constant likewise, and an absent path is zeros. The function stays the same, exactly; the cost is
    padding, which is zeros and does not train.

    Args:
        model: a ``PeftModel`` with a `GLoraConfig` adapter.
        adapter_name: which one; None is the active one.

    Raises:
        UserError: another kind of adapter, or one on a Conv1D, which stock GLoRA does not adapt.
    """
    name, layers, weights = _read("to_stock", model, adapter_name, GLoraConfig)
    for module, layer in layers.items():
        if layer.fan_in_fan_out:
            raise invalid("to_stock", f"{module}, a Conv1D", "adapters on torch.nn.Linear alone, as stock GLoRA has")
    kinds = {path: _largest(layer.paths[name].kinds[path] for layer in layers.values()) for path in PATHS}
    for members in TIED.values():
        kinds |= dict.fromkeys(members, _largest(kinds[path] for path in members))
    r = max(1, *(layer.paths[name].r for layer in layers.values()))
    config = peft.GloraConfig(
        r=r,
        target_modules=_targets(model, layers),
        config_A_B=kinds["A"],
        config_C=kinds["C"],
        config_D_E=kinds["D"],
        bias=model.peft_config[name].bias,
        **_common(model.peft_config[name]),
    )
    converted = {key: value for key, value in weights.items() if ".glora_" not in key}
    for module, layer in layers.items():
        for path, kind in kinds.items():
            own = _tensors_of(weights, module, path)
            if not layer.has_bias and path not in ("A", "B"):
                kind = "none"
            widened = _widen(own, path, kind, layer.in_features, layer.out_features, r)
            converted |= {f"base_model.model.{module}.glora_{path}.{key}": value for key, value in widened.items()}
    return config, converted


def from_stock(model: PeftModel, adapter_name: str | None = None) -> tuple[GLoraConfig, Weights]:
    """An adapter of peft's own GLoRA in this package's format: the same kinds in every layer.

    Args:
        model: a ``PeftModel`` with a ``peft.GloraConfig`` adapter.
        adapter_name: which one; None is the active one.

    Raises:
        UserError: another kind of adapter.
    """
    name, _, weights = _read("from_stock", model, adapter_name, peft.GloraConfig)
    stock = model.peft_config[name]
    kept = ("r", "target_modules", "config_A_B", "config_C", "config_D_E", "bias", "init_weights")
    config = GLoraConfig(**{key: getattr(stock, key) for key in kept}, **_common(stock))
    # The zeros of its absent paths are buffers.
    return config, {key: value for key, value in weights.items() if not key.endswith(".zeros")}


def to_lora(model: PeftModel, adapter_name: str | None = None, *, pad: bool = False) -> tuple[peft.LoraConfig, Weights]:
    """An adapter with no other path than B as peft's LoRA, with a rank for every layer.

    A vector or a constant on B is a LoRA of rank 1 whose ``lora_A`` is ones.

    Args:
        model: a ``PeftModel`` with a `GLoraConfig` adapter.
        adapter_name: which one; None is the active one.
        pad: give every layer the largest rank, with zeros, for readers that do not know ``rank_pattern`` and
            ``alpha_pattern``; the function stays the same.

    Raises:
        UserError: some layer has another path; the message names it.
    """
    name, layers, weights = _read("to_lora", model, adapter_name, GLoraConfig)
    ranks: dict[str, int] = {}
    bias = model.peft_config[name].bias
    converted = {key: value for key, value in weights.items() if ".glora_" not in key}
    largest = max((layer.paths[name].r for layer in layers.values() if layer.paths[name].B != "none"), default=1)
    for module, layer in layers.items():
        paths = layer.paths[name]
        others = [path for path, kind in paths.kinds.items() if kind != "none" and path != "B"]
        if others:
            found = f"{module} with {paths.describe()}"
            raise invalid("to_lora", found, f"subnets of B paths alone; a LoRA cannot express {', '.join(others)}")
        if paths.B != "none" or bias != "none":  # a trained bias goes along with its layer
            ranks[module] = max(1, largest if pad else paths.r)
            own = _widen(
                _tensors_of(weights, module, "B"), "B", "lora", layer.in_features, layer.out_features, ranks[module]
            )
            prefix = f"base_model.model.{module}"
            converted |= {f"{prefix}.lora_A.weight": own["Xu"], f"{prefix}.lora_B.weight": own["Xd"]}
    if not ranks:
        raise invalid("to_lora", "an adapter without any path", "subnets with a B path")
    # peft takes the first pattern that matches the end of a module's name: the longest has to come first.
    pattern = {} if pad else {re.escape(module): ranks[module] for module in sorted(ranks, key=len, reverse=True)}
    config = peft.LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),  # alpha = rank: a scale of 1
        target_modules=_targets(model, ranks),
        fan_in_fan_out=any(layers[module].fan_in_fan_out for module in ranks),
        bias="lora_only" if bias == "glora_only" else bias,
        **_common(model.peft_config[name]),
    )
    return config, converted


def save_adapter(folder: str | Path, config: PeftConfig, weights: Weights) -> None:
    """Write a config and its weights as an adapter folder, which ``PeftModel.from_pretrained`` loads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, since tied embeddings, which are saved where they were resized, are one tensor of two names.
    kept = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _read(
    caller: str, model: PeftModel, adapter_name: str | None, config_cls: type[PeftConfig]
) -> tuple[str, dict[str, GLoraLayer], Weights]:
    """An adapter's name, its GLoRA layers by their names in the base model, and its weights, the head's included."""
    if not isinstance(model, PeftModel):
        raise invalid(caller, type(model).__name__, "a PeftModel")
    if adapter_name is None:
        if len(model.active_adapters) != 1:
            raise invalid(f"{caller}.adapter_name", adapter_name, list(model.peft_config))
        adapter_name = model.active_adapters[0]
    if adapter_name not in model.peft_config:
        raise invalid(f"{caller}.adapter_name", adapter_name, list(model.peft_config))
    if not isinstance(model.peft_config[adapter_name], config_cls):
        found = type(model.peft_config[adapter_name])
        raise invalid(
            caller,
            f"adapter {adapter_name!r} of a {found.__module__}.{found.__name__}",
            f"an adapter of {config_cls.__module__}.{config_cls.__name__}",
        )
    layers = {
        name: module
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, GLoraLayer) and module.has_adapter(adapter_name)
    }
    weights = get_peft_model_state_dict(model, adapter_name=adapter_name)
    return adapter_name, layers, weights


def _largest(kinds: Any) -> str:
    return max(kinds, key=LARGER.index)


def _tensors_of(weights: Weights, module: str, path: str) -> Weights:
    prefix = f"base_model.model.{module}.glora_{path}."
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


@torch.no_grad()
def _widen(own: Weights, path: str, kind: str, in_features: int, out_features: int, r: int) -> Weights:
    """A path's tensors as those of a larger kind and rank; an absent path becomes zeros.

    Where stock GLoRA has no path at all it keeps a buffer of zeros, in its files too.
    """
    like = next(iter(own.values()), torch.zeros(()))
    if kind == "none":
        shapes = {"A": (out_features, in_features), "B": (out_features, in_features), "C": (in_features, 1)}
        return {"zeros": like.new_zeros(shapes.get(path, (out_features,)))}
    wide = {key: like.new_zeros(shape) for key, shape in path_shapes(path, kind, in_features, out_features, r).items()}
    if not own:
        return wide
    if kind != "lora":
        wide["X"].copy_(own["X"].expand_as(wide["X"]))
    elif "X" in own:
        wide["Xd"][:, :1] = own["X"]
        wide["Xu"][0] = 1
    else:
        rank = own["Xd"].shape[1]
        wide["Xd"][:, :rank] = own["Xd"]
        wide["Xu"][:rank] = own["Xu"]
    return wide


def _targets(model: PeftModel, layers: Iterable[str]) -> list[str] | str:
    """What ``target_modules`` has to be for an adapter of these layers and no other module."""
    return exact_targets(layers, (name for name, _ in model.base_model.model.named_modules()))


def _common(config: PeftConfig) -> dict[str, Any]:
    """The fields that mean the same in all of these formats."""
    names = ("task_type", "base_model_name_or_path", "revision", "inference_mode")
    saved = config.modules_to_save  # peft adds the classifier each time that it makes a model
    return {name: getattr(config, name) for name in names} | {
        "modules_to_save": list(dict.fromkeys(saved)) if saved else None
    }
