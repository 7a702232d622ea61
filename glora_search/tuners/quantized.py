"""Linear layers whose weight is quantised: which there are, and how one is made dense.

No library is imported here: who has a quantised layer has imported what made it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from glora_search.compat import dequantize_bnb_weight
from glora_search.errors import invalid

EIGHT_BIT = "bitsandbytes.nn.modules.Linear8bitLt"
METHODS = {
    "bitsandbytes.nn.modules.Linear4bit": "bitsandbytes 4 bit",
    EIGHT_BIT: "bitsandbytes 8 bit",
    "torchao.Int8Tensor": "torchao int8",
}
"""The type of a layer, or of its weight, -> what it is called."""


ROUNDED_INPUTS = 1 / 127
"""The precision of a layer that no path adapts and that is quantised to 8 bit by bitsandbytes, which rounds its inputs
to 8 bit too."""


def precision(model: Any) -> float:
    """The precision of what a model computes."""
    rounds = any(quantization_of(module) == EIGHT_BIT for module in model.modules())
    return max(torch.finfo(model.dtype).eps, ROUNDED_INPUTS if rounds else 0.0)


def quantization_of(module: nn.Module) -> str | None:
    """The name of the type that makes a linear layer quantised; None where it is not."""
    weight = getattr(module, "weight", None)
    if type(weight).__module__.startswith("torchao."):
        return f"torchao.{type(weight).__qualname__}"
    name = f"{type(module).__module__}.{type(module).__qualname__}"
    return name if name.startswith("bitsandbytes.") and hasattr(module, "weight") else None


def check_quantization(module: nn.Module, name: str) -> str | None:
    """The quantisation of a layer that is to be adapted.

    Raises:
        UserError: one that cannot be made dense as it was tested, or that quantises the inputs as well.
    """
    found = quantization_of(module)
    if found is None:
        return None
    weight: Any = module.weight
    if found not in METHODS or getattr(weight, "act_quant_kwargs", None) is not None:
        inputs = " with quantised inputs" if found in METHODS else ""
        raise invalid(f"target module {name!r}", f"{found}{inputs}", f"weights alone: {', '.join(METHODS.values())}")
    if found.startswith("bitsandbytes.") and not _is_packed(module):
        allowed = "a layer whose weight is quantised: bitsandbytes does so when the layer is moved to a device"
        raise invalid(f"target module {name!r}", f"{found} of a dense weight", allowed)
    keep_format(module)
    return found


def keep_format(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit weights anew, with rounded scales, when a model is first scored on a CPU.

    It does so where the CPU has AVX512-BF16, and then only layers of 32, 64, ... outputs work, and none in training.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.state_dict()  # puts back what is packed already
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _is_packed(module: Any) -> bool:
    weight, state = module.weight, getattr(module, "state", None)
    found = (getattr(weight, "quant_state", None), getattr(weight, "SCB", None), getattr(state, "SCB", None))
    return any(part is not None for part in found)


@torch.no_grad()
def dense_weight(module: nn.Module, dtype: torch.dtype | None = None) -> Tensor:
    """A quantised layer's weight ``[out, in]`` as a new plain tensor.

    Args:
        dtype: None is the dtype that the library gives it.
    """
    weight: Any = module.weight
    if type(weight).__module__.startswith("torchao."):
        dense = weight.dequantize()
    elif (state := getattr(weight, "quant_state", None)) is not None:  # 4 bits; unpickled, the weight is a plain one
        from bitsandbytes.functional import dequantize_4bit

        dense = dequantize_4bit(weight.data, state)
    else:
        dense = dequantize_bnb_weight(weight, state=getattr(module, "state", None))
    dense = dense.detach()
    return dense if dtype is None else dense.to(dtype)


def compute_dtype(module: nn.Module, x: Tensor) -> torch.dtype:
    """What a quantised layer computes in: what it was told to (``bnb_4bit_compute_dtype``), or its inputs' dtype."""
    told = getattr(module, "compute_dtype", None)
    return told if isinstance(told, torch.dtype) else x.dtype


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer, frozen, of this weight and bias."""
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain


def dequantize(model: nn.Module) -> int:
    """Make a model plain, in place: its quantised linear layers become dense, in the dtype of the rest of it.

    Returns:
        How many layers they were.
    """
    names = [name for name, module in model.named_modules() if quantization_of(module) is not None]
    config: Any = getattr(model, "config", None)
    dtype: Any = getattr(model, "dtype", torch.get_default_dtype())
    for name in names:
        module: Any = model.get_submodule(name)
        bias = None if module.bias is None else module.bias.detach().to(dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, linear_of(dense_weight(module, dtype), bias))
    own: Any = model
    if getattr(own, "hf_quantizer", None) is not None:
        own.hf_quantizer = None
        for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit", "quantization_method"):
            model.__dict__.pop(flag, None)
        del config.quantization_config
    return len(names)
