"""Training a found subnet on, and the baselines that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, set_seed

from glora_search.export import load_adapter
from glora_search.space import ATTENTION_QV, SpaceLayer
from glora_search.training import train
from glora_search.tuners.glora import GLoraConfig


def retrain(
    base: PreTrainedModel,
    adapter: Path,
    dataset: Any,
    collator: Any,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    start: Literal["inherited", "scratch"] = "inherited",
    seed: int = 0,
) -> Any:
    """Train an exported subnet on.

    Args:
        base: a fresh base model.
        adapter: the adapter folder.
        start: from the folder's weights and head, or from new ones.
        settings: fields of TrainingArguments.
        folder: where checkpoints go.

    Returns:
        The ``PeftModel``.
    """
    set_seed(seed)
    if start == "inherited":
        model = load_adapter(base, adapter, trainable=True)
    else:
        config = GLoraConfig.from_pretrained(str(adapter))
        config.inference_mode = False
        model = get_peft_model(base, config)
    train(model, dataset, collator, settings, folder, seed=seed, description="retrain")
    return model


def lora_within(layers: Sequence[SpaceLayer], max_params: int | None, task_type: str) -> LoraConfig | None:
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
            return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type=task_type)
    return None
