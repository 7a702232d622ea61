"""What the tests of GLoRA models share: adapters of different paths on tiny models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from glora_search import GLoraConfig, GLoraLinear

TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "mlp": ["0", "2"],
}


MIXED = {
    "bert": {"value": {"A_B": "vector", "r": 1}, "layer.1.intermediate.dense": {"A": "none", "D_E": "vector"}},
    "llama": {"v_proj": {"A": "constant", "B": "lora", "r": 3}, "down_proj": {"A_B": "vector"}},
    "gpt2": {"c_fc": {"A": "vector", "E": "none"}},
    "mlp": {"2": {"A_B": "vector"}},
}


ARCHITECTURES = list(TARGETS)


def config(architecture: str = "bert", **options: Any) -> GLoraConfig:
    """Different paths and ranks in different layers."""
    defaults = {"r": 2, "target_modules": TARGETS[architecture], "path_pattern": MIXED[architecture]}
    return GLoraConfig(**{**defaults, **options})


def glora_layers(model: nn.Module) -> dict[str, GLoraLinear]:
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, GLoraLinear)
    }


def same_weights(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> bool:
    return now.keys() == before.keys() and all(torch.equal(now[name], before[name]) for name in before)


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
