"""What a search is compared with: peft's LoRA under the same budget, trained for as long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig

from glora_search.recipe.arguments import TRAINING_DEFAULTS
from glora_search.recipe.schema import Recipe
from glora_search.space.bound import ATTENTION_QV, BoundSpace
from glora_search.space.layers import SpaceLayer
from glora_search.training.loop import steps_for, training_arguments


def lora_within(
    space: BoundSpace, max_params: int | None, task_type: str | None, modules_to_save: Sequence[str] = ()
) -> LoraConfig | None:
    """peft's LoRA at the largest rank that fits a budget.

    On all layers of the space where that fits, else on query and value only; 8 is the rank where there is no budget.

    Args:
        space: the bound space, whose layers are adapted.
        max_params: the budget.
        task_type, modules_to_save: as in peft.

    Returns:
        The config, or None where not even rank 1 on query and value fits.
    """
    found = fitting_lora(space, max_params)
    if found is None:
        return None
    rank, layers = found
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=space.targets(layer.name for layer in layers),
        task_type=task_type,
        modules_to_save=list(modules_to_save) or None,
    )


def fitting_lora(space: BoundSpace, max_params: int | None) -> tuple[int, list[SpaceLayer]] | None:
    """The rank and the layers of `lora_within`; each layer has rank times the sum of its sizes in parameters."""
    attention = [layer for layer in space.layers if layer.name.rpartition(".")[2] in ATTENTION_QV]
    for chosen in (space.layers, attention):
        cost = sum(layer.in_features + layer.out_features for layer in chosen)
        rank = 8 if max_params is None else max_params // cost if cost else 0
        if rank:
            return rank, chosen
    return None


def baseline_settings(recipe: Recipe, rows: int, processes: int = 1) -> dict[str, Any]:
    """The training arguments of a baseline: the supernet's, for as long as the supernet and retraining take together.

    Args:
        recipe: the experiment.
        rows: train rows, which say how many steps an epoch has.
        processes: that train together.
    """
    parts = [TRAINING_DEFAULTS | section.training for section in (recipe.supernet, recipe.retrain)]
    own = recipe.baseline.training
    if any(part.get("max_steps", -1) > 0 for part in parts):
        arguments = (training_arguments(part, Path("unused"), recipe.seed) for part in parts)
        length: dict[str, Any] = {"max_steps": sum(steps_for(part, rows, processes) for part in arguments)}
        if "num_train_epochs" in own:
            length = {"max_steps": -1}
    else:
        length = {"num_train_epochs": sum(part["num_train_epochs"] for part in parts)}
    rate = {key: value for key, value in recipe.retrain.training.items() if key == "learning_rate"}
    return {**recipe.supernet.training, **rate, **length, **own}
