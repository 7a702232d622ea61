"""Rows for a small supernet's training, and what it has trained."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

STEPS = 4


def dataset(size: int = 24, architecture: str = "bert") -> list[dict[str, Any]]:
    """Rows with a class, or of Llama, with one to four tokens to learn in the middle."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 50, (size, 6), generator=generator)
    if architecture == "bert":
        return [{"input_ids": row, "labels": row.sum() % 3} for row in ids]
    places = torch.arange(6)
    learned = [(places >= 1) & (places < 2 + n % 4) for n in range(size)]
    return [{"input_ids": row, "labels": row.where(own, -100)} for row, own in zip(ids, learned, strict=True)]


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
