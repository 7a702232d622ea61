"""Uniform methods: the same paths in all layers, as large as a budget allows. They are what a search has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from glora_search.space.bound import BoundSpace
from glora_search.space.layers import SpaceLayer
from glora_search.training.baselines import fitting_lora, lora_within
from glora_search.tuners.glora.config import paths_to_config
from glora_search.vocabulary import LayerPaths


@dataclass(frozen=True)
class Uniform:
    """A uniform method at a size.

    Attributes:
        name: what tables call it.
        params: of the adapter.
        config: task type and modules to save, as in peft -> the adapter's config.
        lr_factors: what its paths need where the recipe says nothing of their kinds, see `PathTrainer`.
        rated: whether its learning rate is raced.
    """

    name: str
    params: int
    config: Callable[[str | None, Sequence[str]], Any]
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    rated: bool = False


def uniform_methods(space: BoundSpace, max_params: int | None, names: Sequence[str]) -> list[Uniform]:
    """The methods of these names that fit a budget.

    Args:
        space: the bound space, whose layers are adapted.
        max_params: the budget; None is rank 8.
        names: see `METHODS`.
    """
    made = (METHODS[name](space, max_params) for name in dict.fromkeys(names))
    return [method for method in made if method is not None and (max_params is None or method.params <= max_params)]


def _lora(space: BoundSpace, max_params: int | None) -> Uniform | None:
    found = fitting_lora(space, max_params)
    if found is None:
        return None
    rank, layers = found
    return Uniform(
        f"LoRA r={rank}{_where(space, layers)}",
        rank * sum(layer.in_features + layer.out_features for layer in layers),
        lambda task_type, saved: lora_within(space, max_params, task_type, saved),
        rated=True,
    )


def _hira(space: BoundSpace, max_params: int | None) -> Uniform | None:
    found = fitting_lora(space, max_params)
    if found is None:
        return None
    rank, layers = found
    # Adam moves a layer about 15 times less through a low-rank A than through B: A multiplies the small base weights.
    return _of(space, f"HiRA r={rank}{_where(space, layers)}", LayerPaths(A="lora", r=rank), layers, {"A.lora": 15.0})


def _lora_and_vectors(space: BoundSpace, max_params: int | None) -> Uniform | None:
    vectors = sum(layer.params(_fitted(LayerPaths(A="vector", E="vector"), layer)) for layer in space.layers)
    found = fitting_lora(space, None if max_params is None else max(0, max_params - vectors))
    if found is None or len(found[1]) < len(space.layers):
        return None
    paths = LayerPaths(A="vector", B="lora", E="vector", r=found[0])
    return _of(space, f"LoRA r={found[0]} and vectors", paths, space.layers, {"A.vector": 5.0, "E.vector": 2.0})


def _of(
    space: BoundSpace, name: str, paths: LayerPaths, layers: Sequence[SpaceLayer], lr_factors: Mapping[str, float]
) -> Uniform | None:
    """A method with these paths in these layers; None where no layer can have them."""
    made = of_paths(space, name, {layer.name: _fitted(paths, layer) for layer in layers}, lr_factors)
    return made if made.params else None


def of_paths(
    space: BoundSpace, name: str, chosen: Mapping[str, LayerPaths], lr_factors: Mapping[str, float]
) -> Uniform:
    """A method with these paths.

    Args:
        chosen: layer -> its paths; the others have none.
    """
    params = sum(layer.params(chosen[layer.name]) for layer in space.layers if layer.name in chosen)

    def config(task_type: str | None, saved: Sequence[str]) -> Any:
        others = [*(layer.name for layer in space.layers), *space.namesakes]
        return paths_to_config(chosen, others, task_type=task_type, modules_to_save=list(saved) or None)

    return Uniform(name, params, config, lr_factors)


def _fitted(paths: LayerPaths, layer: SpaceLayer) -> LayerPaths:
    return paths if layer.has_bias else paths.without_bias()


def _where(space: BoundSpace, layers: Sequence[SpaceLayer]) -> str:
    return "" if len(layers) == len(space.layers) else " on query+value"


METHODS: dict[str, Callable[[BoundSpace, int | None], Uniform | None]] = {
    "lora": _lora,
    "ia3": lambda space, _: _of(space, "(IA)3", LayerPaths(A="vector"), space.layers, {"A.vector": 5.0}),
    "bitfit": lambda space, _: _of(space, "BitFit", LayerPaths(E="vector"), space.layers, {"E.vector": 2.0}),
    "hira": _hira,
    "lora+vectors": _lora_and_vectors,
}
"""Name -> the method at its largest size within a budget: LoRA (B low-rank), (IA)3 (A a vector), BitFit (E a vector),
HiRA (A low-rank), and LoRA with vectors A and E."""
