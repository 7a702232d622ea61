"""Search per-layer GLoRA adapters for Hugging Face models."""

import sys
import sysconfig
from itertools import dropwhile
from pathlib import Path
from typing import TYPE_CHECKING

from glora_search.lazy import lazily

if TYPE_CHECKING:
    from glora_search.find import FoundAdapter, find_adapter
    from glora_search.recipe.schema import Recipe
    from glora_search.report import write_report
    from glora_search.run.runner import Run
    from glora_search.scoring import Evaluation, RowMetric
    from glora_search.search.calibration import Calibration, calibration_args
    from glora_search.search.evaluator import SubnetEvaluator
    from glora_search.search.evolution import EvolutionSampler, PaperSampler
    from glora_search.search.samplers import make_sampler
    from glora_search.search.shared.storage import open_storage
    from glora_search.search.study import search
    from glora_search.search.trials import best_trial, front
    from glora_search.space import BoundSpace, SearchSpace
    from glora_search.supernet import (
        Sampling,
        SamplingCallback,
        SizeSampling,
        SupernetConfig,
        SupernetModel,
        SupernetTrainer,
        probe_subnets,
    )
    from glora_search.training.baselines import lora_within
    from glora_search.training.trainer import PathTrainer
    from glora_search.tuners.glora import (
        GLoraConfig,
        GLoraLayer,
        GLoraLinear,
        GLoraModel,
        from_stock,
        to_lora,
        to_stock,
    )

__version__ = "0.1.12"
__all__ = [
    "BoundSpace",
    "Calibration",
    "Evaluation",
    "EvolutionSampler",
    "FoundAdapter",
    "GLoraConfig",
    "GLoraLayer",
    "GLoraLinear",
    "GLoraModel",
    "PaperSampler",
    "PathTrainer",
    "Recipe",
    "RowMetric",
    "Run",
    "Sampling",
    "SamplingCallback",
    "SearchSpace",
    "SizeSampling",
    "SubnetEvaluator",
    "SupernetConfig",
    "SupernetModel",
    "SupernetTrainer",
    "best_trial",
    "calibration_args",
    "find_adapter",
    "from_stock",
    "front",
    "lora_within",
    "make_sampler",
    "open_storage",
    "probe_subnets",
    "search",
    "to_lora",
    "to_stock",
    "write_report",
]


def _is_command_line() -> bool:
    """Whether this process is the command line, whose help must not wait for torch."""
    program = Path(sys.argv[0])
    if program.name in ("glora-search", "glora-search.exe"):  # a script of the user's may have this name too
        return program.resolve().parent == Path(sysconfig.get_path("scripts")).resolve()
    given = dropwhile(lambda word: word.startswith("-") and word != "-m", sys.orig_argv[1:])  # launchers say -u
    return [*given][:2] == ["-m", __name__]


__getattr__ = lazily(
    __name__,
    {
        **dict.fromkeys(("FoundAdapter", "find_adapter"), "find"),
        **dict.fromkeys(("BoundSpace", "SearchSpace"), "space"),
        **dict.fromkeys(
            (name for name in __all__ if name.startswith(("Supernet", "probe", "Sampling", "Size"))), "supernet"
        ),
        **dict.fromkeys((name for name in __all__ if name.startswith(("GLora", "from_", "to_"))), "tuners.glora"),
        **dict.fromkeys(("Calibration", "calibration_args"), "search.calibration"),
        **dict.fromkeys(("EvolutionSampler", "PaperSampler"), "search.evolution"),
        **dict.fromkeys(("best_trial", "front"), "search.trials"),
        **dict.fromkeys(("Evaluation", "RowMetric"), "scoring"),
        "PathTrainer": "training.trainer",
        "Recipe": "recipe.schema",
        "Run": "run.runner",
        "SubnetEvaluator": "search.evaluator",
        "lora_within": "training.baselines",
        "make_sampler": "search.samplers",
        "write_report": "report",
        "open_storage": "search.shared.storage",
    },
)

if not TYPE_CHECKING and not _is_command_line():
    # Importing the methods makes them known to peft. `search` is a package too, so the function is bound after it.
    from glora_search.search.study import search
    from glora_search.supernet import SupernetConfig
