"""GLoRA with per-layer paths, as a PEFT method."""

from glora_search.tuners.glora.config import GLoraConfig
from glora_search.tuners.glora.convert import from_stock, save_adapter, to_lora, to_stock
from glora_search.tuners.glora.layer import GLoraLayer, GLoraLinear
from glora_search.tuners.glora.model import GLoraModel
from glora_search.tuners.registry import GLoraSearchType, register

register(GLoraSearchType.GLORA_PATHS, GLoraConfig, GLoraModel)

__all__ = [
    "GLoraConfig",
    "GLoraLayer",
    "GLoraLinear",
    "GLoraModel",
    "from_stock",
    "save_adapter",
    "to_lora",
    "to_stock",
]
