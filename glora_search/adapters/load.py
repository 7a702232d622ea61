"""Adapter folders with their base model: loading, counting, and merging into a plain model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import PreTrainedModel

import glora_search.supernet  # noqa: F401 - registers the type of a supernet
from glora_search.errors import UserError
from glora_search.tuners.glora import GLoraConfig


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
    """A base model with an adapter folder's adapter and head.

    Raises:
        UserError: the folder's files are missing or damaged.
    """
    with _refused(folder):
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    config = model.peft_config[model.active_adapter]
    if config.modules_to_save:  # to which peft adds the head that it knows, each time
        config.modules_to_save = list(dict.fromkeys(config.modules_to_save))
    return model


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[None]:
    """What goes wrong with an adapter folder's files as a UserError."""
    files = ("adapter_config.json", "adapter_model.safetensors")
    try:
        for name in files:
            if not (folder / name).is_file():  # peft would look for it on the hub
                raise FileNotFoundError(f"{name} is missing")
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:  # another config, say
        reason = " ".join(str(error).split("\n")[:2])
        raise UserError(f"{folder}: not a complete adapter ({reason}); repeat its stage with --again") from error


def subnet_to_train(base: PreTrainedModel, adapter: Path, *, start: Literal["inherited", "scratch"]) -> Any:
    """An exported subnet, ready to be trained on.

    Args:
        base: a fresh base model.
        adapter: the adapter folder.
        start: with the folder's weights and head, or with new ones.

    Returns:
        The ``PeftModel``.

    Raises:
        UserError: the folder's files are missing or damaged.
    """
    if start == "inherited":
        return load_adapter(base, adapter, trainable=True)
    with _refused(adapter):
        config = GLoraConfig.from_pretrained(str(adapter))
    config.inference_mode = False
    return get_peft_model(base, config)


def adapter_params(model: Any) -> int:
    """Trainable parameters of the active adapter; the head is not among them."""
    names = {f".{adapter}." for adapter in model.active_adapters}
    prefix = model.base_model.prefix
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if f".{prefix}" in name and any(part in name for part in names)
    )


@torch.no_grad()
def merge(model: Any) -> PreTrainedModel:
    """Fold the active adapter into the base weights.

    Returns:
        The plain model, of the base model's class and size, with the trained head.

    Raises:
        ValueError: a merged weight is not finite.
    """
    plain: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    plain.requires_grad_(True)
    return plain.eval()
