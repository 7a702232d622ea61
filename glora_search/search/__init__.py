"""The search: samplers propose genomes, an evaluator scores them, a study remembers."""

from glora_search.search.evaluator import Evaluation, SubnetEvaluator
from glora_search.search.evolution import EvolutionSampler, PaperSampler
from glora_search.search.samplers import make_sampler
from glora_search.search.storage import open_storage
from glora_search.search.study import best_trial, front, search

__all__ = [
    "Evaluation",
    "EvolutionSampler",
    "PaperSampler",
    "SubnetEvaluator",
    "best_trial",
    "front",
    "make_sampler",
    "open_storage",
    "search",
]
