"""What this package uses of peft and Optuna beyond their documented interfaces.

Tried with peft 0.21.2 and optuna 5.0.0. A newer version may move these names; pyproject.toml bounds both for that
reason, and the tests of `tuners`, `space` and `search` say whether a new version can be let in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba as check_mamba
from peft.tuners.tuners_utils import _ExcludedModule as ExcludedModule
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers as include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_GLORA_TARGET_MODULES_MAPPING
from peft.utils.constants import SEQ_CLS_HEAD_NAMES as _HEADS
from peft.utils.integrations import dequantize_bnb_weight
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseGASampler
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

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
    "check_mamba",
    "check_target_module_exists",
    "dequantize_bnb_weight",
    "generation_key",
    "get_pattern_key",
    "include_all_linear_layers",
    "storage_of",
    "study_id",
    "trial_id",
]


def study_id(study: optuna.Study) -> int:
    """A study's number in its storage (optuna 5.0.0); in memory each study has the number 0."""
    return int(study._study_id)


def storage_of(study: optuna.Study) -> BaseStorage:
    """Where a study is kept (optuna 5.0.0)."""
    return study._storage


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """A trial's number in its storage (optuna 5.0.0), which is not its number in the study."""
    return int(trial._trial_id)


def generation_key(sampler: BaseGASampler) -> str:
    """The system attribute in which a genetic sampler finds a trial's generation (optuna 5.0.0)."""
    return str(sampler._get_generation_key())
