"""The search: samplers propose genomes, an evaluator scores them, a study remembers."""

from typing import TYPE_CHECKING

from glora_search.lazy import lazily

if TYPE_CHECKING:
    from glora_search.search.calibration import Calibration, calibration_args
    from glora_search.search.evaluator import Evaluation, SubnetEvaluator
    from glora_search.search.evolution import EvolutionSampler, PaperSampler
    from glora_search.search.samplers import make_sampler
    from glora_search.search.storage import open_storage
    from glora_search.search.study import search
    from glora_search.search.trials import best_trial, front

__all__ = [
    "Calibration",
    "Evaluation",
    "EvolutionSampler",
    "PaperSampler",
    "SubnetEvaluator",
    "best_trial",
    "calibration_args",
    "front",
    "make_sampler",
    "open_storage",
    "search",
]
__getattr__ = lazily(
    __name__,
    {
        "Calibration": "calibration",
        "Evaluation": "evaluator",
        "EvolutionSampler": "evolution",
        "PaperSampler": "evolution",
        "SubnetEvaluator": "evaluator",
        "best_trial": "trials",
        "calibration_args": "calibration",
        "front": "trials",
        "make_sampler": "samplers",
        "open_storage": "storage",
        "search": "study",
    },
)
