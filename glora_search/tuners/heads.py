"""What peft does not do for a head of several layers."""

from __future__ import annotations

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
