"""The maths of GLoRA on plain tensors, shared by the adapter layer and the supernet's layer.

Notation: N rows of input, weight ``W0 [out, in]``, bias ``b0 [out]``, ranks summed over the active adapters.
Source: arXiv 2306.07967, eq. 6-9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
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


@dataclass(frozen=True)
class Packed:
    """A frozen weight that is kept quantised: made dense where it is needed, and dropped again.

    Attributes:
        shape: ``(out, in)``.
        dense: makes ``W0 [out, in]`` as a new tensor, in x's dtype.
    """

    shape: tuple[int, int]
    dense: Callable[[], Tensor]


def collect(adapters: Iterable[PathTensors], dtype: torch.dtype) -> Terms:
    """Add up the paths of several adapters: vectors and constants are summed, low-rank factors concatenated.

    Args:
        adapters: one mapping for each active adapter.
        dtype: what the weight is computed in; A and B are cast to it, differentiably. C, D and E make up the bias,
            which costs nothing: they keep their own precision where it is higher.
    """
    dense: dict[str, Tensor] = {}
    factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for adapter in adapters:
        for path, tensors in adapter.items():
            own = dtype
            if path not in ("A", "B"):
                own = torch.promote_types(next(iter(tensors.values())).dtype, dtype)
            if "X" in tensors:
                value = _cast(tensors["X"], own)
            else:
                down, up = _cast(tensors["Xd"], own), _cast(tensors["Xu"], own)
                if path in ("A", "B"):
                    factors.setdefault(path, []).append((down, up))
                    continue
                value = down @ up
            dense[path] = dense[path] + value if path in dense else value

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


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value if value.dtype == dtype else value.to(dtype)


@torch.no_grad()
def effective_weight(weight: Tensor, terms: Terms, out: Tensor | None = None) -> Tensor:
    """``W0 + W0 * A + B``, not differentiable, with one dense temporary at most.

    Args:
        weight: ``W0 [out, in]``.
        terms: with some of A and B.
        out: memory for the result, ``[out, in]`` of the weight's dtype; None makes a new tensor.
    """
    # W0 + W0 * A and not W0 * (1 + A): in bfloat16 1 + A is 1 for every |A| below 0.004.
    if terms.a_lora is not None:
        down, up = terms.a_lora
        delta = torch.mm(down, up, out=out)
        if terms.a is not None:
            delta += terms.a
        result = torch.addcmul(weight, weight, delta, out=delta)
    elif terms.a is not None:
        result = torch.addcmul(weight, weight, terms.a, out=out)
    else:
        result = weight.clone() if out is None else out.copy_(weight)
    if terms.b_lora is not None:
        result.addmm_(*terms.b_lora)
    if terms.b is not None:
        result += terms.b
    return result


def effective_bias(weight: Tensor, bias: Tensor | None, terms: Terms) -> Tensor | None:
    """``b0 + b0 * D + E + W0 @ C``, ``[out]``; None on a layer without a bias."""
    return None if bias is None else _bias(weight, bias, terms.c, terms.d, terms.e)


def _bias(weight: Tensor, bias: Tensor, c: Tensor | None, d: Tensor | None, e: Tensor | None) -> Tensor:
    result = bias
    if d is not None:
        result = torch.addcmul(bias, bias, d)
    if e is not None:
        result = result + e
    if c is not None:
        result = result + weight @ _cast(c.reshape(-1), weight.dtype)
    return result


def glora_linear(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, terms: Terms) -> Tensor:
    """``x @ W.T + b`` with the adapted ``W`` and ``b``, differentiable in x, in the bias and in every term.

    Without a low-rank A no dense weight is built: A scales the output of the frozen weight, B is two thin products.
    With one, ``W`` is made once in the forward and once more in the backward pass, and never kept between them.

    Args:
        x: ``[..., in]``.
        weight: ``W0 [out, in]``, frozen; one that is packed is made dense once in each pass, and never kept.
        bias: ``b0 [out]`` or None.
        terms: the active paths, in x's dtype.

    Returns:
        ``[..., out]``.
    """
    rows = x.reshape(-1, x.shape[-1])
    b_down, b_up = _as_factors(terms.b, terms.b_lora, weight)
    if terms.a_lora is None:
        a, a_down, a_up = terms.a, None, None
    else:
        a, (a_down, a_up) = None, _as_factors(terms.a, terms.a_lora, weight)
    c, d, e = (terms.c, terms.d, terms.e) if bias is not None else (None, None, None)
    y = _GLoraLinear.apply(rows, weight, bias, a, a_down, a_up, b_down, b_up, c, d, e)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _as_factors(
    dense: Tensor | None, lora: tuple[Tensor, Tensor] | None, weight: Tensor | Packed
) -> tuple[Tensor | None, Tensor | None]:
    """A or B as one pair of factors: a vector is one more column, next to a row of ones; so is a constant."""
    if dense is None:
        return lora or (None, None)
    column = dense.expand(weight.shape[0], 1)
    ones = dense.new_ones(1, weight.shape[1])
    if lora is None:
        return column, ones
    return torch.cat([lora[0], column], dim=1), torch.cat([lora[1], ones], dim=0)


class _GLoraLinear(torch.autograd.Function):
    """The whole layer as one node of the graph.

    Autograd through the formula would make a node, and a tensor to keep, of every operation; with a low-rank A it
    would keep three ``[out, in]`` temporaries a layer until the backward pass. Kept here are the inputs, the thin
    ``x @ b_up.T``, and, where A is a vector or a constant that is trained, the frozen weight's output: A's gradient
    is the sum of its product with the output's gradient, and to compute it again would cost a whole matrix product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        frozen_weight: Tensor | Packed,
        bias: Tensor | None,
        a: Tensor | None,
        a_down: Tensor | None,
        a_up: Tensor | None,
        b_down: Tensor | None,
        b_up: Tensor | None,
        c: Tensor | None,
        d: Tensor | None,
        e: Tensor | None,
    ) -> Tensor:
        packed = frozen_weight if isinstance(frozen_weight, Packed) else None
        weight = frozen_weight if isinstance(frozen_weight, Tensor) else frozen_weight.dense()
        b = None if bias is None else _cast(_bias(weight, bias, c, d, e), x.dtype)
        need_a, need_a_down, need_a_up, need_b_down, need_b_up = ctx.needs_input_grad[3:8]
        frozen, thin = None, None
        if a_down is not None:
            y = F.linear(x, _dense(weight, a_down, a_up, b_down, b_up), b)
        else:
            if a is None:
                y = F.linear(x, weight, b)
            else:
                frozen = F.linear(x, weight)
                y = _scaled(frozen, a.reshape(-1), b)
            if b_up is not None and b_down is not None:
                thin = F.linear(x, b_up)
                y.addmm_(thin, b_down.T)
        need_x = need_a_down or need_a_up or need_b_up or (a_down is not None and need_b_down)
        ctx.packed = packed
        ctx.save_for_backward(
            x if need_x else None,
            *(None if packed is not None else weight, bias, a, a_down, a_up, b_down, b_up, c, d, e),
            frozen if need_a else None,
            thin if need_b_down else None,
        )
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_autocast_enabled(grad.device.type):
            return _gradients(ctx, grad)
        with torch.autocast(grad.device.type, enabled=False):  # the forward has chosen the dtype
            return _gradients(ctx, grad)


INPUTS = ("x", "weight", "bias", "a", "a_down", "a_up", "b_down", "b_up", "c", "d", "e")
"""The inputs of `_GLoraLinear`."""


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """One gradient for each of `INPUTS`."""
    x, weight, bias, a, a_down, a_up, b_down, b_up, c, d, e, frozen, thin = ctx.saved_tensors
    need = dict(zip(INPUTS, ctx.needs_input_grad, strict=True))
    if need["weight"]:
        raise RuntimeError("GLoRA's base weights are frozen, but requires_grad is set on one: merge, then train it")
    if ctx.packed is not None and (need["x"] or need["c"] or a_down is not None):
        weight = ctx.packed.dense()
    found: dict[str, Tensor] = {}
    if any(need[name] for name in ("bias", "c", "d", "e")):
        found = _bias_gradients(_sum_rows(grad), weight, bias, c, d, e, need)
    if a_down is not None:
        found |= _dense_gradients(grad, x, weight, a_down, a_up, b_down, b_up, need)
    else:
        found |= _thin_gradients(grad, x, weight, a, b_down, b_up, frozen, thin, need)
    return tuple(found.get(name) if need[name] else None for name in INPUTS)


def _scaled(y: Tensor, a: Tensor, b: Tensor | None) -> Tensor:
    """``y * (1 + a) + b`` as a new tensor ``[N, out]``."""
    if b is None or y.dtype not in (torch.float32, torch.float64):
        # In lower precision 1 + a would be 1 for every small a.
        y = torch.addcmul(y, y, a)
        return y if b is None else y.add_(b)
    return torch.addcmul(b, y, 1 + a)


def _dense(weight: Tensor, a_down: Tensor, a_up: Any, b_down: Any, b_up: Any) -> Tensor:
    lora = None if b_down is None else (b_down, b_up)
    return effective_weight(weight, Terms(a_lora=(a_down, a_up), b_lora=lora))


def _bias_gradients(
    total: Tensor, weight: Tensor, bias: Tensor, c: Any, d: Any, e: Any, need: dict[str, bool]
) -> dict[str, Tensor]:
    """Gradients of ``b0 + b0 * d + e + W0 @ c`` from the output gradient's sum over the rows, ``total [out]``."""
    found: dict[str, Tensor] = {}
    if need["bias"]:
        found["bias"] = (total if d is None else total + total * d).to(bias.dtype)
    if need["c"]:
        found["c"] = (total @ weight).reshape(c.shape).to(c.dtype)
    if need["d"]:
        found["d"] = _sum_to(total * bias, d)
    if need["e"]:
        found["e"] = _sum_to(total, e)
    return found


def _dense_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, a_down: Tensor, a_up: Tensor, b_down: Any, b_up: Any, need: dict[str, bool]
) -> dict[str, Tensor]:
    """Gradients where A is low-rank: all of the factors come from the one product ``grad.T @ x``."""
    found: dict[str, Tensor] = {}
    scratch = None
    if need["x"]:
        scratch = _dense(weight, a_down, a_up, b_down, b_up)
        found["x"] = grad @ scratch
    if x is not None:
        full = torch.mm(grad.T, x, out=scratch)
        if need["b_down"]:
            found["b_down"] = full @ b_up.T
        if need["b_up"]:
            found["b_up"] = b_down.T @ full
        if need["a_down"] or need["a_up"]:
            full *= weight
        if need["a_down"]:
            found["a_down"] = full @ a_up.T
        if need["a_up"]:
            found["a_up"] = a_down.T @ full
    return found


def _thin_gradients(
    grad: Tensor, x: Any, weight: Tensor, a: Any, b_down: Any, b_up: Any, frozen: Any, thin: Any, need: dict[str, bool]
) -> dict[str, Tensor]:
    """Gradients where A is not low-rank: thin products, next to the one with the frozen weight."""
    found: dict[str, Tensor] = {}
    if need["b_down"]:
        found["b_down"] = (thin.T @ grad).T
    back = grad @ b_down if b_down is not None and (need["x"] or need["b_up"]) else None
    if need["b_up"] and back is not None:
        found["b_up"] = back.T @ x
    scratch = None
    if need["a"]:
        scratch = grad * frozen
        found["a"] = _sum_to(_sum_rows(scratch), a)
    if need["x"]:
        scaled = grad if a is None else torch.addcmul(grad, grad, a.reshape(-1), out=scratch)
        found["x"] = scaled @ weight
        if back is not None:
            found["x"].addmm_(back, b_up)
    return found


def _sum_rows(values: Tensor) -> Tensor:
    """``[N, out]`` -> ``[out]``; a product with ones takes half the time of a sum along the rows on a CPU."""
    return values.new_ones(len(values)) @ values


def _sum_to(gradient: Tensor, value: Tensor) -> Tensor:
    """Sum a gradient ``[out]`` down to the shape of a vector or of a constant."""
    gradient = gradient if value.numel() == gradient.numel() else gradient.sum()
    return gradient.reshape(value.shape).to(value.dtype)
