"""What peft does not do for a head of several layers."""

from __future__ import annotations

from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from glora_search.compat import AuxiliaryTrainingWrapper, BaseTuner


class AnyHead(BaseTuner):
    """A tuner whose adapters can be merged and unloaded under any trained head."""

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # An unloaded head can be a block of several layers, as RoBERTa's is: peft would look for its weight.
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)


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
