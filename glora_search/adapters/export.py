"""A subnet as an adapter folder: as it is, or in a format of peft's own."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from torch import Tensor

from glora_search.adapters.card import write_card
from glora_search.progress import say
from glora_search.tuners.glora import GLoraConfig, save_adapter, to_lora, to_stock


def export_subnet(
    folder: Path,
    config: GLoraConfig,
    weights: Mapping[str, Tensor],
    *,
    model: PeftModel,
    base_model: str,
    facts: Mapping[str, Any],
) -> None:
    """Write a subnet, with the weights that it inherits and the head, as an adapter folder.

    The folder has ``adapter_config.json``, ``adapter_model.safetensors`` and a model card, and
    ``PeftModel.from_pretrained`` loads it where this package is imported.

    Args:
        config, weights: of the subnet, see `SubnetEvaluator.inherit`.
        model: the supernet that it comes from.
        base_model: hub name or folder of the base model, for the card and the config.
        facts: what the card says about it, name -> value.
    """
    config.base_model_name_or_path, config.inference_mode = base_model, True
    _note_model_class(config, model)
    save_adapter(folder, config, dict(weights))
    write_card(folder, base_model, facts)


def _note_model_class(config: PeftConfig, model: PeftModel) -> None:
    """Note what ``AutoPeftModel`` needs where peft has no name for the task, as ``PeftModel.save_pretrained`` does."""
    if config.task_type is None:
        cls = type(model.get_base_model())
        config.auto_mapping = {"base_model_class": cls.__name__, "parent_library": cls.__module__}


def _ranks(config: PeftConfig) -> set[int]:
    """The ranks of a LoRA's layers; none of another adapter."""
    return (set(config.rank_pattern.values()) or {config.r}) if isinstance(config, LoraConfig) else set()


def _rank_facts(ranks: set[int]) -> dict[str, str]:
    """What the card of a LoRA says about its ranks, and who cannot read them."""
    if not ranks:
        return {}
    if len(ranks) == 1:
        return {"rank": f"{min(ranks)} in all layers, which every reader of LoRA scales alike"}
    which = f"{min(ranks)} to {max(ranks)}, by layer (`rank_pattern`, `alpha_pattern`)"
    return {"rank": f"{which}; for llama.cpp, and others that do not know these patterns, export with `--pad`"}


def _size_facts(facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """What the card says of the size of an adapter whose layers were padded to one kind or rank."""
    trained = [key for key in weights if (".glora_" in key or ".lora_" in key) and not key.endswith(".zeros")]
    count = f"{sum(weights[key].numel() for key in trained):,}"
    own = facts.get("adapter parameters")
    return {"adapter parameters": f"{own}, and {count} with padding"} if own not in (None, count) else {}


STOCK_FORMATS: dict[str, Any] = {"peft": to_stock, "lora": to_lora}
"""What peft loads without this package: its own GLoRA, and LoRA."""


def export_stock(
    model: Any,
    form: str,
    folder: Path,
    *,
    base_model: str,
    facts: Mapping[str, Any],
    processor: Any,
    pad: bool = False,
) -> None:
    """Write a model's adapter in one of `STOCK_FORMATS`, which plain peft loads.

    A folder of an earlier export is replaced once the new one is whole.

    Args:
        model: a ``PeftModel`` with a `GLoraConfig` adapter.
        form: ``peft`` or ``lora``. What is peft's LoRA already, as who wins the finals can be, is written as it is.
        processor: the tokenizer or image processor, saved beside it.
        pad: of a ``lora``: one rank for all layers, see `to_lora`.

    Raises:
        UserError: the format cannot express the adapter; nothing was written.
    """
    config = model.peft_config[model.active_adapters[0]]
    if isinstance(config, LoraConfig):
        config, weights = copy.copy(config), get_peft_model_state_dict(model)
        config.inference_mode = True
    else:
        config, weights = STOCK_FORMATS[form](model, **({"pad": pad} if form == "lora" else {}))
    config.base_model_name_or_path = base_model
    _note_model_class(config, model)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save_adapter(part, config, weights)
    ranks = _ranks(config)
    write_card(part, base_model, {**facts, **_size_facts(facts, weights), **_rank_facts(ranks)}, folder)
    processor.save_pretrained(str(part))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    if len(ranks) > 1:
        say("the layers differ in rank, which peft reads; vLLM and llama.cpp need one rank for all: use --pad")
