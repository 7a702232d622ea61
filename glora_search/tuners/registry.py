"""Making a PEFT method of our own known to peft.

``peft.utils.register_peft_method`` takes only names of peft's own enum, so the mappings it fills are filled here.
"""

from __future__ import annotations

import enum

from peft import PeftConfig

from glora_search.compat import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
    BaseTuner,
)


class GLoraSearchType(str, enum.Enum):
    """The ``peft_type`` of this package's methods; peft itself reads its ``value``."""

    GLORA_PATHS = "GLORA_PATHS"
    GLORA_SUPERNET = "GLORA_SUPERNET"


def register(peft_type: GLoraSearchType, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Let ``get_peft_model``, ``PeftModel.from_pretrained`` and the rest of peft find the method."""
    PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls  # type: ignore[index]
    PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls  # type: ignore[index]
    PEFT_TYPE_TO_PREFIX_MAPPING[peft_type] = model_cls.prefix  # type: ignore[index]
