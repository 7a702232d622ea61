"""The search: samplers propose genomes, an evaluator scores them, a study remembers."""

from typing import TYPE_CHECKING

from glora_search.lazy import lazily

if TYPE_CHECKING:
    from glora_search.scoring import Evaluation
    from glora_search.search.calibration import Calibration, calibration_args
    from glora_search.search.evaluator import SubnetEvaluator
    from glora_search.search.evolution import EvolutionSampler, PaperSampler
    from glora_search.search.samplers import make_sampler
    from glora_search.search.shared.storage import open_storage
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
        **dict.fromkeys(("Calibration", "calibration_args"), "search.calibration"),
        **dict.fromkeys(("EvolutionSampler", "PaperSampler"), "search.evolution"),
        **dict.fromkeys(("best_trial", "front"), "search.trials"),
        "Evaluation": "scoring",
        "SubnetEvaluator": "search.evaluator",
        "make_sampler": "search.samplers",
        "open_storage": "search.shared.storage",
        "search": "search.study",
    },
)
