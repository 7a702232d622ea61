"""What the tests of one GLoRA layer share: small layers with random adapters, and the definition."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from glora_search.tuners.glora.layer import GLoraLinear
from glora_search.vocabulary import KINDS, PATHS, LayerPaths

FULL = LayerPaths("lora", "lora", "lora", "vector", "vector", r=2)


ANY_PATHS = st.builds(LayerPaths, **{path: st.sampled_from(KINDS[path]) for path in PATHS}, r=st.integers(1, 3))


def linear(kind: type[nn.Module] = nn.Linear, *, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    """5 features in, 7 out."""
    layer = Conv1D(7, 5) if kind is Conv1D else nn.Linear(5, 7, bias=bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return layer.to(dtype)


def adapted(base: nn.Module, **adapters: LayerPaths) -> GLoraLinear:
    """A layer with random adapters, all of them active."""
    names = list(adapters)
    layer = GLoraLinear(base, names[0], adapters[names[0]], init_weights=False)
    for name in names[1:]:
        layer.update_layer(name, adapters[name], init_weights=False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in layer.named_parameters():
        if name.startswith("glora_"):
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter)
    layer.set_adapter(names)
    return layer


def inputs(dtype: torch.dtype = torch.float64, rows: int = 4) -> Tensor:
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(2)).to(dtype)


def snapshot(layer: GLoraLinear) -> list[Tensor]:
    """The bits of the base layer's weight and bias."""
    return [parameter.detach().clone() for parameter in layer.get_base_layer().parameters()]


def same(layer: GLoraLinear, bits: list[Tensor]) -> bool:
    now = snapshot(layer)
    return len(now) == len(bits) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(now, bits, strict=True)
    )


def value(layer: GLoraLinear, path: str, adapter: str) -> Tensor | float:
    tensors = layer.path_tensors(adapter).get(path)
    if tensors is None:
        return 0.0
    return tensors["X"] if "X" in tensors else tensors["Xd"] @ tensors["Xu"]


def by_definition(layer: GLoraLinear, x: Tensor, adapters: list[str]) -> Tensor:
    base = layer.get_base_layer()
    W0 = base.weight.T if isinstance(base, Conv1D) else base.weight
    W, b = W0, base.bias
    for name in adapters:
        W = W + W0 * value(layer, "A", name) + value(layer, "B", name)
        if base.bias is not None:
            b = b + base.bias * value(layer, "D", name) + value(layer, "E", name)
            c = value(layer, "C", name)
            b = b + (W0 @ c).reshape(-1) if isinstance(c, Tensor) else b
    return x @ W.T if b is None else x @ W.T + b
