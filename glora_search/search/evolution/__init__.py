"""Evolution under a budget: the default sampler, the paper's, and the steps that they are made of."""

from glora_search.search.evolution.paper import PaperSampler
from glora_search.search.evolution.sampler import EvolutionSampler

__all__ = ["EvolutionSampler", "PaperSampler"]
