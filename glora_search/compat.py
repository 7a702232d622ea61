"""What this package uses of peft beyond its documented interface.

Tried with peft 0.21.2. A newer peft may move these names; pyproject.toml bounds it for that reason, and the tests of
`tuners` and `space` say whether a new version can be let in.
"""

from __future__ import annotations

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    check_adapters_to_merge,
    check_target_module_exists,
)
from peft.tuners.tuners_utils import _ExcludedModule as ExcludedModule
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers as include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING
from peft.utils.constants import SEQ_CLS_HEAD_NAMES as _HEADS
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key

SEQ_CLS_HEAD_NAMES = tuple(_HEADS)
"""What peft trains and saves in a sequence classification model, by the end of the module's name."""

__all__ = [
    "PEFT_TYPE_TO_CONFIG_MAPPING",
    "PEFT_TYPE_TO_PREFIX_MAPPING",
    "PEFT_TYPE_TO_TUNER_MAPPING",
    "SEQ_CLS_HEAD_NAMES",
    "TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING",
    "AuxiliaryTrainingWrapper",
    "BaseTuner",
    "BaseTunerLayer",
    "ExcludedModule",
    "check_adapters_to_merge",
    "check_target_module_exists",
    "get_pattern_key",
    "include_all_linear_layers",
]
