"""What peft does not do for a head of several layers, and for a quantised model."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glora_search.compat import AuxiliaryTrainingWrapper, BaseTuner
from glora_search.progress import say
from glora_search.tuners.quantized import dequantize, keep_format, quantization_of


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
            say(f"merge: {quantized} quantised layers were made dense, in {plain.dtype}", "dim")
        return plain


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
