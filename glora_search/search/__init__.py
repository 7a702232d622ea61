"""The search: samplers propose genomes, an evaluator scores them, a study remembers."""

from glora_search.search.evaluator import Evaluation, SubnetEvaluator
from glora_search.search.sampler import EvolutionSampler
from glora_search.search.study import best_trial, search

__all__ = ["Evaluation", "EvolutionSampler", "SubnetEvaluator", "best_trial", "search"]
