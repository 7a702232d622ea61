"""Layers that a space adapts and a model never calls: they count in the budget, and learn nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from glora_search.space.bound import BoundSpace


@contextmanager
def called(model: nn.Module, names: Sequence[str]) -> Iterator[set[str]]:
    """Those of these modules that have been called in the block."""
    found: set[str] = set()
    handles = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: found.add(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def idle_notes(space: BoundSpace, found: set[str]) -> list[str]:
    """A note of the adapted layers that are not called: Longformer's of global attention, or Mamba's ``dt_proj``.

    Args:
        found: the layers that are.
    """
    known = {_numberless(name) for name in found}  # which experts are called depends on the rows
    idle = [layer.name for layer in space.layers if _numberless(layer.name) not in known]
    what = "count in the budget but learn nothing, since the model has not called them; space.exclude leaves them out"
    return [f"{len(idle)} of {len(space.layers)} adapted layers, e.g. {idle[0]}, {what}"] if idle else []


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "N", name)
