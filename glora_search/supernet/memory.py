"""Whether a device has the memory to fold subnets, which keeps a second copy of the adapted weights."""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch
from torch import Tensor

SHARE = 0.5
"""The copy may take this share of what is free; the rest is for activations."""


def folding_fits(weights: Iterable[Tensor]) -> bool:
    """Whether a second copy of these weights fits well into the memory of each device that holds them."""
    needed: dict[torch.device, int] = {}
    for weight in weights:
        needed[weight.device] = needed.get(weight.device, 0) + weight.numel() * weight.element_size()
    return all(size <= SHARE * _free(device) for device, size in needed.items())


def _free(device: torch.device) -> float:
    """Bytes; where they cannot be told, infinitely many."""
    if device.type == "cpu":
        return float(psutil.virtual_memory().available)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return float("inf")
