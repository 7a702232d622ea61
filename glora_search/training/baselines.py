"""What is trained after the search: the found subnet, and the baselines that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from glora_search.adapters.load import load_adapter
from glora_search.space.bound import ATTENTION_QV
from glora_search.space.layers import SpaceLayer
from glora_search.tuners.glora import GLoraConfig


def subnet_to_train(base: PreTrainedModel, adapter: Path, *, start: Literal["inherited", "scratch"]) -> Any:
    """An exported subnet, ready to be trained on.

    Args:
        base: a fresh base model.
        adapter: the adapter folder.
        start: with the folder's weights and head, or with new ones.

    Returns:
        The ``PeftModel``.
    """
    if start == "inherited":
        return load_adapter(base, adapter, trainable=True)
    config = GLoraConfig.from_pretrained(str(adapter))
    config.inference_mode = False
    return get_peft_model(base, config)


def lora_within(
    layers: Sequence[SpaceLayer], max_params: int | None, task_type: str | None, modules_to_save: Sequence[str] = ()
) -> LoraConfig | None:
    """peft's LoRA at the largest rank that fits a budget.

    On all layers where that fits, else on query and value only; 8 is the rank where there is no budget.

    Returns:
        The config, or None where not even rank 1 on query and value fits.
    """
    attention = [layer for layer in layers if layer.name.rpartition(".")[2] in ATTENTION_QV]
    for chosen in (list(layers), attention):
        cost = sum(layer.in_features + layer.out_features for layer in chosen)
        rank = 8 if max_params is None else max_params // cost if cost else 0
        if rank:
            names = [layer.name for layer in chosen]
            saved = list(modules_to_save) or None
            return LoraConfig(
                r=rank, lora_alpha=2 * rank, target_modules=names, task_type=task_type, modules_to_save=saved
            )
    return None
