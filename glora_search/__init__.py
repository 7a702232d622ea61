"""Find the best per-layer GLoRA adapter for a Hugging Face model."""

from glora_search.find import FoundAdapter, find_adapter
from glora_search.space import BoundSpace, SearchSpace
from glora_search.supernet import SupernetConfig, SupernetModel, SupernetTrainer
from glora_search.tuners.glora import GLoraConfig, GLoraLayer, GLoraLinear, GLoraModel, from_stock, to_lora, to_stock

__version__ = "0.1.0"
__all__ = [
    "BoundSpace",
    "FoundAdapter",
    "GLoraConfig",
    "GLoraLayer",
    "GLoraLinear",
    "GLoraModel",
    "SearchSpace",
    "SupernetConfig",
    "SupernetModel",
    "SupernetTrainer",
    "find_adapter",
    "from_stock",
    "to_lora",
    "to_stock",
]
