"""Several adapters as one: their weighted sum, exactly, since what a layer computes is linear in every path."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from glora_search.tuners.glora.layer import GLoraLayer
from glora_search.vocabulary import KINDS, PATHS, LayerPaths

Factors = tuple[Tensor, Tensor]


@torch.no_grad()
def weighted_sum(layer: GLoraLayer, weights: Mapping[str, float]) -> tuple[LayerPaths, dict[str, dict[str, Tensor]]]:
    """The paths that add to a layer what some of its adapters add, each times its weight.

    A path takes the largest of the adapters' kinds. Low-rank factors are concatenated, so that ranks add up; a vector
    or a constant beside them is one more column.

    Args:
        layer: with its adapters.
        weights: adapter -> its weight; an adapter that the layer does not have adds nothing.

    Returns:
        The paths, and path -> its tensors.
    """
    held = [name for name in weights if layer.has_adapter(name)]
    dense: dict[str, Tensor] = {}
    factors: dict[str, Factors] = {}
    kinds: dict[str, str] = {}
    for path in PATHS:
        parts = [(weights[name], layer.path_tensors(name)[path]) for name in held if path in layer.path_tensors(name)]
        if not parts:
            continue
        # The largest kind comes first.
        kinds[path] = min((layer.paths[name].kinds[path] for name in held), key=KINDS[path].index)
        if kinds[path] == "lora":
            factors[path] = _joined([_as_factors(own, weight, path, layer) for weight, own in parts])
        else:
            dense[path] = torch.stack(torch.broadcast_tensors(*(weight * own["X"] for weight, own in parts))).sum(0)
    r = max((down.shape[1] for down, _ in factors.values()), default=0)
    tensors = {path: {"X": value} for path, value in dense.items()}
    for path, (down, up) in factors.items():  # all low-rank paths of a layer have one rank
        more = r - down.shape[1]
        tensors[path] = {"Xd": pad(down, (0, more)), "Xu": pad(up, (0, 0, 0, more))}
    return LayerPaths(**kinds, r=r), tensors


def _as_factors(own: nn.ParameterDict, weight: float, path: str, layer: GLoraLayer) -> Factors:
    if "Xd" in own:
        return weight * own["Xd"], own["Xu"]
    rows, columns = (layer.in_features, 1) if path == "C" else (layer.out_features, layer.in_features)
    return (weight * own["X"]).expand(rows, 1), own["X"].new_ones(1, columns)


def _joined(pairs: list[Factors]) -> Factors:
    return torch.cat([down for down, _ in pairs], dim=1), torch.cat([up for _, up in pairs], dim=0)
