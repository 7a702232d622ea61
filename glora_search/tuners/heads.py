"""What peft does not do for a head: of several layers, of half precision, and on a quantised model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glora_search.compat import SEQ_CLS_HEAD_NAMES, AuxiliaryTrainingWrapper, BaseTuner
from glora_search.progress import say
from glora_search.tuners.quantized import dequantize, keep_format, quantization_of

HALVES = (torch.bfloat16, torch.float16)
HEADS = {"SEQ_CLS": SEQ_CLS_HEAD_NAMES, "TOKEN_CLS": SEQ_CLS_HEAD_NAMES, "QUESTION_ANS": ["qa_outputs"]}
"""Task type -> the modules that peft trains and saves without being told."""


class AnyHead(BaseTuner):
    """A tuner whose adapters can be merged and unloaded under any trained head."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # An unloaded head can be a block of several layers, as RoBERTa's is: peft would look for its weight.
            setattr(parent, child_name, new_module)
        else:
            if getattr(new_module, "quantized", False):
                new_module.dense_dtype = getattr(self.model, "dtype", new_module.dense_dtype)
            super()._replace_module(parent, child_name, new_module, child)

    def inject_adapter(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """As in peft; quantised weights keep their format."""
        keep_format(model)
        return super().inject_adapter(model, *args, **kwargs)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As in peft; the model is plain then: what is quantised in it has become dense, and a message says so."""
        quantized = sum(quantization_of(module) is not None for module in self.model.modules())
        plain: Any = super().merge_and_unload(*args, **kwargs)
        if quantized:
            dequantize(plain)
            say(f"merge: {quantized} quantised layers were dequantised to {plain.dtype}", "dim")
        return plain


def train_in_float32(model: nn.Module, modules: Sequence[str]) -> None:
    """Make what is trained as it is float32, in a model of half precision, where small steps round away.

    A head's output stays float32, and so does the loss; that of a module inside of the model is what it was.

    Args:
        modules: ends of names, as in peft's ``modules_to_save``.
    """
    for name, module in model.named_modules():
        if not name or not name.endswith(tuple(modules)):
            continue
        half = next((own.dtype for own in module.parameters() if own.dtype in HALVES), None)
        if half is not None:
            module.float()
            module.register_forward_pre_hook(_raised, with_kwargs=True)
            if "." in name:
                module.register_forward_hook(functools.partial(_lowered, half))


def loss_in_float32(model: Any) -> None:
    """Give an encoder-decoder model of half precision logits in float32: transformers computes its loss in their
    precision, which has three digits. (Not where GLoRA adapts the output layer itself, which no shipped space does.)"""
    head = model.get_output_embeddings()
    if head is not None and any(own.dtype in HALVES for own in head.parameters()):
        head.register_forward_hook(_as_float32)


def _as_float32(module: nn.Module, args: Any, output: Any) -> Any:
    return _as(torch.float32, output)


def _raised(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _as(torch.float32, args), {name: _as(torch.float32, value) for name, value in kwargs.items()}


def _lowered(dtype: torch.dtype, module: nn.Module, args: Any, output: Any) -> Any:
    return _as(dtype, output)


def _as(dtype: torch.dtype, value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_as(dtype, one) for one in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def bare(model: Any) -> Any:
    """The base model of a ``PeftModel``, without adapters, and with its heads as they were before any training."""
    base = model.get_base_model()
    for name, module in list(base.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            base.set_submodule(name, module.original_module)
        elif isinstance(module, BaseTunerLayer):
            base.set_submodule(name, module.get_base_layer())
    vars(base).pop("peft_config", None)  # which would make the next adapter a second one
    return base
