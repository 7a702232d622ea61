"""What bench_layers.py measures: the same paths on one frozen layer, in each implementation."""

from __future__ import annotations

import peft
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from glora_search.space.layers import SpaceLayer
from glora_search.supernet.layer import SupernetLinear
from glora_search.tuners.glora import GLoraLinear
from glora_search.vocabulary import LayerPaths

PATH_SETS: dict[str, dict[str, str]] = {
    "all lora": {"A": "lora", "B": "lora", "C": "lora", "D": "vector", "E": "vector"},
    "A vector, B lora": {"A": "vector", "B": "lora", "C": "none", "D": "none", "E": "vector"},
    "all vector": {"A": "vector", "B": "vector", "C": "vector", "D": "vector", "E": "vector"},
    "B lora only": {"B": "lora"},
}
LORA_RANK = 8
"""Rank of the peft LoRA that everything is compared with."""


class Target(nn.Module):
    """A model of one linear layer, so that peft can wrap it."""

    def __init__(self, out_features: int, in_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)


def float_adapters(layer: GLoraLinear | SupernetLinear) -> nn.Module:
    """Adapter parameters in float32 over whatever base layer, as ``get_peft_model`` makes them."""
    for name, parameter in layer.named_parameters():
        if "base_layer" not in name:
            parameter.data = parameter.data.float()
    return layer


class Materialising(nn.Module):
    """What the formula says, through autograd: ``x @ (W0 + W0 * A + B).T + (b0 + b0 * D + E + W0 @ C)``.

    Everything absent costs nothing here, unlike in the paper's code, which adds zeros.
    """

    def __init__(self, layer: GLoraLinear) -> None:
        super().__init__()
        self.base, self.tensors = layer.get_base_layer(), nn.ModuleDict(layer.path_tensors("default"))

    def _path(self, path: str) -> Tensor | None:
        if path not in self.tensors:
            return None
        tensors = self.tensors[path]
        return tensors["X"] if "X" in tensors else tensors["Xd"] @ tensors["Xu"]

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e = (self._path(path) for path in "ABCDE")
        weight, bias = self.base.weight, self.base.bias
        w0, b0 = weight, bias
        if a is not None:
            weight = weight + w0 * a
        if b is not None:
            weight = weight + b
        if d is not None:
            bias = bias + b0 * d
        if e is not None:
            bias = bias + e
        if c is not None:
            bias = bias + (w0 @ c).squeeze(-1)
        return F.linear(x, weight.to(x.dtype), bias.to(x.dtype))


def stock_kinds(kinds: dict[str, str]) -> dict[str, str]:
    """The uniform stock GLoRA that holds these paths: A and B, and D and E, share the larger of their kinds."""
    order = ("none", "constant", "vector", "lora")
    tied = {"A_B": ("A", "B"), "C": ("C",), "D_E": ("D", "E")}
    return {
        f"config_{name}": max((kinds.get(path, "none") for path in paths), key=order.index)
        for name, paths in tied.items()
    }


def contestants(
    shape: tuple[int, int], r: int, kinds: dict[str, str], device: str, dtype: torch.dtype
) -> dict[str, nn.Module]:
    """Name -> layer, all on the same frozen weight size; the adapters' parameters stay float32, as peft keeps them."""
    out_features, in_features = shape
    paths = LayerPaths(**kinds, r=r)

    def target() -> Target:
        return Target(out_features, in_features).to(device, dtype).requires_grad_(False)

    lora = get_peft_model(target(), peft.LoraConfig(r=LORA_RANK, target_modules=["linear"]))
    stock = get_peft_model(
        target(), peft.GloraConfig(r=r, target_modules=["linear"], init_weights=False, **stock_kinds(kinds))
    )

    def glora() -> GLoraLinear:
        return float_adapters(GLoraLinear(target().linear, "default", paths, init_weights=False).to(device))

    space = SpaceLayer("linear", in_features, out_features, True, {path: [kind] for path, kind in kinds.items()}, [r])
    supernet = float_adapters(SupernetLinear(target().linear, "default", space).to(device))
    supernet.activate(paths)
    merged = glora()
    merged.merge()
    return {
        "plain": target().linear,
        "peft LoRA r=8": lora.base_model.model.linear,
        "stock GLoRA": stock.base_model.model.linear,
        "materialising": Materialising(glora()),
        "ours": glora(),
        "our supernet": supernet,
        "ours merged": merged.get_base_layer(),
    }


def floor(shape: tuple[int, int], tokens: int, r: int, kinds: dict[str, str], backward: bool) -> float:
    """The multiplications that no implementation can avoid, over a plain frozen layer's.

    The plain layer's are one product in the forward pass and one more (the input's gradient) in the backward pass. A
    low-rank A adds the product ``gradient.T @ x``, which then serves a low-rank B as well; without it a low-rank B
    takes thin products. What has no matrix product (vectors, the bias) counts as nothing.
    """
    out_features, in_features = shape
    full = tokens * out_features * in_features
    thin = tokens * r * (out_features + in_features)
    dense = r * out_features * in_features
    plain = full * (2 if backward else 1)
    work = plain
    low_rank_a, low_rank_b = kinds.get("A") == "lora", kinds.get("B") == "lora"
    if low_rank_a:
        work += dense + (full + 2 * dense if backward else 0)
    if low_rank_b:
        # The product gradient.T @ x is there already where A is low-rank; else thin products take its place.
        work += min(thin, dense) if low_rank_a else thin
        work += (min(2 * thin, 2 * dense) if low_rank_a else 2 * thin) if backward else 0
    return work / plain
