"""The supernet: all choices of a search space with shared weights, as a PEFT method."""

from glora_search.supernet.callback import SamplingCallback
from glora_search.supernet.config import SupernetConfig
from glora_search.supernet.layer import SupernetLayer, SupernetLinear
from glora_search.supernet.model import SupernetModel
from glora_search.supernet.probes import probe_subnets
from glora_search.supernet.sampling import (
    BudgetSampling,
    FairSampling,
    Sampling,
    SandwichSampling,
    SizeSampling,
    UniformSampling,
    make_sampling,
)
from glora_search.supernet.trainer import SupernetTrainer
from glora_search.tuners.registry import GLoraSearchType, register

register(GLoraSearchType.GLORA_SUPERNET, SupernetConfig, SupernetModel)

__all__ = [
    "BudgetSampling",
    "FairSampling",
    "Sampling",
    "SamplingCallback",
    "SandwichSampling",
    "SizeSampling",
    "SupernetConfig",
    "SupernetLayer",
    "SupernetLinear",
    "SupernetModel",
    "SupernetTrainer",
    "UniformSampling",
    "make_sampling",
    "probe_subnets",
]
