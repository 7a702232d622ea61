"""The maths of GLoRA on plain tensors, shared by the adapter layer and the supernet's layer.

Notation: N rows of input, weight ``W0 [out, in]``, bias ``b0 [out]``, ranks summed over the active adapters.
Source: arXiv 2306.07967, eq. 6-9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

PathTensors = Mapping[str, Mapping[str, Tensor]]
"""Path -> tensor name -> tensor; a low-rank path has ``Xd`` and ``Xu``, a vector or a constant has ``X``."""


@dataclass(frozen=True)
class Terms:
    """What the active adapters of one layer add up to; None where nothing is there.

    Attributes:
        a: scale of the weight's rows, ``[out, 1]`` or ``[1]``.
        a_lora: ``([out, r], [r, in])``; with ``a`` it makes up A.
        b: shift of the weight's rows, ``[out, 1]`` or ``[1]``.
        b_lora: ``([out, r], [r, in])``; with ``b`` it makes up B.
        c: ``[in, 1]``.
        d, e: ``[out]`` or ``[1]``.
    """

    a: Tensor | None = None
    a_lora: tuple[Tensor, Tensor] | None = None
    b: Tensor | None = None
    b_lora: tuple[Tensor, Tensor] | None = None
    c: Tensor | None = None
    d: Tensor | None = None
    e: Tensor | None = None

    @property
    def empty(self) -> bool:
        """Whether the layer is the base layer."""
        return all(value is None for value in vars(self).values())


def collect(adapters: Iterable[PathTensors], dtype: torch.dtype) -> Terms:
    """Add up the paths of several adapters: vectors and constants are summed, low-rank factors concatenated.

    Args:
        adapters: one mapping for each active adapter.
        dtype: what the weight is computed in; A and B are cast to it, differentiably. C, D and E make up the bias,
            which costs nothing: they keep their own precision where it is higher.
    """
    dense: dict[str, Tensor] = {}
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(path: str, value: Tensor) -> None:
        value = value.to(dtype if path in ("A", "B") else torch.promote_types(value.dtype, dtype))
        dense[path] = dense[path] + value if path in dense else value

    for adapter in adapters:
        for path, tensors in adapter.items():
            if "X" in tensors:
                add(path, tensors["X"])
            elif path == "C":
                wide = torch.promote_types(tensors["Xd"].dtype, dtype)
                add(path, tensors["Xd"].to(wide) @ tensors["Xu"].to(wide))
            else:
                factors.setdefault(path, []).append((tensors["Xd"].to(dtype), tensors["Xu"].to(dtype)))

    def joined(path: str) -> tuple[Tensor, Tensor] | None:
        pairs = factors.get(path)
        if not pairs:
            return None
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([down for down, _ in pairs], dim=1), torch.cat([up for _, up in pairs], dim=0)

    return Terms(
        a=dense.get("A"),
        a_lora=joined("A"),
        b=dense.get("B"),
        b_lora=joined("B"),
        c=dense.get("C"),
        d=dense.get("D"),
        e=dense.get("E"),
    )


@torch.no_grad()
def effective_weight(weight: Tensor, terms: Terms) -> Tensor:
    """``W0 + W0 * A + B`` as a new tensor ``[out, in]``, not differentiable, with one dense temporary at most."""
    # W0 + W0 * A and not W0 * (1 + A): in bfloat16 1 + A is 1 for every |A| below 0.004.
    if terms.a_lora is not None:
        down, up = terms.a_lora
        delta = down @ up
        if terms.a is not None:
            delta += terms.a
        result = torch.addcmul(weight, weight, delta, out=delta)
    elif terms.a is not None:
        result = torch.addcmul(weight, weight, terms.a)
    else:
        result = weight.clone()
    if terms.b_lora is not None:
        result.addmm_(*terms.b_lora)
    if terms.b is not None:
        result += terms.b
    return result


def effective_bias(weight: Tensor, bias: Tensor | None, terms: Terms) -> Tensor | None:
    """``b0 + b0 * D + E + W0 @ C``, ``[out]``; None on a layer without a bias."""
    if bias is None:
        return None
    result = bias
    if terms.d is not None:
        result = result + result * terms.d
    if terms.e is not None:
        result = result + terms.e
    if terms.c is not None:
        result = result + (weight @ terms.c.to(weight.dtype)).squeeze(-1)
    return result


def glora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, terms: Terms) -> Tensor:
    """``x @ W.T + b`` with the adapted ``W`` and ``b``, differentiable in x, in the bias and in every term.

    No dense weight is built unless A is low-rank: then ``W`` is made once in the forward and once more in the
    backward pass, and never kept between them.

    Args:
        x: ``[..., in]``.
        weight: ``W0 [out, in]``, frozen.
        bias: ``b0 [out]`` or None.
        terms: the active paths, in x's dtype.

    Returns:
        ``[..., out]``.
    """
    rows = x.reshape(-1, x.shape[-1])
    b = effective_bias(weight, bias, terms)
    b = None if b is None else b.to(x.dtype)
    if terms.a_lora is not None:
        y = _DenseScaled.apply(rows, weight, b, terms.a, *terms.a_lora, terms.b, *(terms.b_lora or (None, None)))
    else:
        y = _factored(rows, weight, b, terms)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _factored(x: Tensor, weight: Tensor, b: Tensor | None, terms: Terms) -> Tensor:
    """The linear layer without a low-rank A: every path acts on the output of the frozen weight."""
    if terms.a is None:
        y = F.linear(x, weight, b)
    else:
        y = F.linear(x, weight)
        y = torch.addcmul(y if b is None else y + b, y, terms.a.reshape(-1))
    if terms.b_lora is not None:
        down, up = terms.b_lora
        y = torch.addmm(y, F.linear(x, up), down.T)
    if terms.b is not None:
        # B's columns are all the same, so its product with x needs only the row sums of x.
        y = torch.addcmul(y, x.sum(-1, keepdim=True), terms.b.reshape(-1))
    return y


class _DenseScaled(torch.autograd.Function):
    """The linear layer with a low-rank A, whose weight is dense.

    Autograd through the formula would keep three ``[out, in]`` temporaries a layer until the backward pass. Every
    weight gradient comes from the one product ``G = grad.T @ x``, so nothing but the inputs is saved.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        a_down: Tensor,
        a_up: Tensor,
        b: Tensor | None,
        b_down: Tensor | None,
        b_up: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, a_down, a_up, b, b_down, b_up)
        return F.linear(x, effective_weight(weight, _dense_terms(a, a_down, a_up, b, b_down, b_up)), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, a_down, a_up, b, b_down, b_up = ctx.saved_tensors
        need_x, _, need_bias, need_a, need_down, need_up, need_b, need_b_down, need_b_up = ctx.needs_input_grad
        g: dict[str, Tensor] = {}
        if need_x:
            g["x"] = grad @ effective_weight(weight, _dense_terms(a, a_down, a_up, b, b_down, b_up))
        if need_bias:
            g["bias"] = grad.sum(0)
        if need_a or need_down or need_up or need_b or need_b_down or need_b_up:
            full = grad.T @ x
            if b is not None and need_b:
                g["b"] = _like(full.sum(1, keepdim=True), b)
            if need_b_down:
                g["b_down"] = full @ b_up.T
            if need_b_up:
                g["b_up"] = b_down.T @ full
            full *= weight
            if a is not None and need_a:
                g["a"] = _like(full.sum(1, keepdim=True), a)
            if need_down:
                g["a_down"] = full @ a_up.T
            if need_up:
                g["a_up"] = a_down.T @ full
        names = ("x", "weight", "bias", "a", "a_down", "a_up", "b", "b_down", "b_up")
        return tuple(g.get(name) for name in names)


def _dense_terms(a: Any, a_down: Any, a_up: Any, b: Any, b_down: Any, b_up: Any) -> Terms:
    return Terms(a=a, a_lora=(a_down, a_up), b=b, b_lora=None if b_down is None else (b_down, b_up))


def _like(rows: Tensor, value: Tensor) -> Tensor:
    """Sum a gradient ``[out, 1]`` down to the shape of a vector or of a constant."""
    return rows.reshape(value.shape) if value.numel() == rows.numel() else rows.sum().reshape(value.shape)
