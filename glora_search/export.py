"""Writing a subnet as an adapter folder, and merging an adapter into a plain model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from glora_search.errors import UserError
from glora_search.files import write_text
from glora_search.space import Choice
from glora_search.tuners.glora import save_adapter, to_lora, to_stock


def export_subnet(
    supernet: Any, genome: Mapping[str, Choice], folder: Path, *, base_model: str, facts: Mapping[str, Any]
) -> None:
    """Write a subnet, with the weights that it inherits and the head, as an adapter folder.

    The folder has ``adapter_config.json``, ``adapter_model.safetensors`` and a model card, and
    ``PeftModel.from_pretrained`` loads it where this package is imported.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        genome: the subnet.
        base_model: hub name or folder of the base model, for the card and the config.
        facts: what the card says about it, name -> value.
    """
    config = supernet.subnet_config(genome, base_model_name_or_path=base_model, inference_mode=True)
    _note_model_class(config, supernet)
    save_adapter(folder, config, supernet.subnet_state_dict(genome))
    write_card(folder, base_model, facts)


def write_card(folder: Path, base_model: str, facts: Mapping[str, Any], name: Path | None = None) -> None:
    """The model card of an adapter folder: what it is and how it is loaded.

    Args:
        name: the folder that the card speaks of, where that is another.
    """
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    kinds: dict[str, int] = {}
    ours = "path_pattern" in settings
    for paths in settings.get("path_pattern", {}).values():
        for path, kind in paths.items():
            if path != "r":
                kinds[f"{path}={kind}"] = kinds.get(f"{path}={kind}", 0) + 1
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    counts = "".join(f"| {name} | {count} |\n" for name, count in sorted(kinds.items()))
    layers = f"\n| path and kind | layers |\n| --- | --- |\n{counts}" if ours else ""
    import_line = "import glora_search  # makes the adapter's type known to peft\n" if ours else ""
    head = " The classification head is included." if "labels" in facts else ""
    plain = "without peft and without this package" if ours else "without peft"
    write_text(
        folder / "README.md",
        f"""---
base_model: {json.dumps(base_model)}
library_name: peft
tags: [glora, glora-search]
---

# {"GLoRA adapter with per-layer paths" if ours else f"{settings['peft_type']} adapter"}

Found by glora-search (GLoRA: arXiv 2306.07967).{head}

| | |
| --- | --- |
{rows}
{layers}
```python
{import_line}{_loading(settings["task_type"], str(name or folder), facts.get("labels"))}
plain = model.merge_and_unload()  # a transformers model, {plain}
```
""",
    )


PEFT_CLASSES: dict[str | None, str] = {
    "SEQ_CLS": "AutoPeftModelForSequenceClassification",
    "TOKEN_CLS": "AutoPeftModelForTokenClassification",
    "CAUSAL_LM": "AutoPeftModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoPeftModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoPeftModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoPeftModelForFeatureExtraction",
    None: "AutoPeftModel",
}
"""peft's name of a task -> the class that loads an adapter with its base model."""


def _note_model_class(config: PeftConfig, model: PeftModel) -> None:
    """Note what ``AutoPeftModel`` needs where peft has no name for the task, as ``PeftModel.save_pretrained`` does."""
    if config.task_type is None:
        cls = type(model.get_base_model())
        config.auto_mapping = {"base_model_class": cls.__name__, "parent_library": cls.__module__}


def _loading(task_type: str | None, folder: str, labels: int | None) -> str:
    """The lines of Python that load an adapter folder."""
    options = "" if labels is None else f", num_labels={labels}"
    cls = PEFT_CLASSES[task_type]
    return f"from peft import {cls}\n\nmodel = {cls}.from_pretrained({json.dumps(folder)}{options})"


STOCK_FORMATS: dict[str, Any] = {"peft": to_stock, "lora": to_lora}
"""What peft loads without this package: its own GLoRA, and LoRA."""


def export_stock(model: Any, form: str, folder: Path, *, base_model: str, facts: Mapping[str, Any]) -> None:
    """Write a model's adapter in one of `STOCK_FORMATS`, which plain peft loads.

    A folder of an earlier export is replaced once the new one is whole.

    Args:
        model: a ``PeftModel`` with a `GLoraConfig` adapter.
        form: ``peft`` or ``lora``.

    Raises:
        UserError: the format cannot express the adapter; nothing was written.
    """
    config, weights = STOCK_FORMATS[form](model)
    config.base_model_name_or_path = base_model
    _note_model_class(config, model)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    save_adapter(part, config, weights)
    write_card(part, base_model, facts, folder)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def load_adapter(base: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
    """A base model with an adapter folder's adapter and head.

    Raises:
        UserError: the folder's files are missing or damaged.
    """
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    try:
        if missing:  # peft would look for it on the hub
            raise FileNotFoundError(f"{missing[0]} is missing")
        return PeftModel.from_pretrained(base, str(folder), is_trainable=trainable)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}: not a whole adapter ({error}); make it again, with --again") from error


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
