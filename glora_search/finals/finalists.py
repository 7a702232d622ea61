"""Who competes: uniform methods from their own starts, and the search's best subnets with their inherited weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from glora_search.space.layers import Genome
from glora_search.training.uniform import Uniform

TAUGHT = " + teacher"
"""How the names of taught finalists end."""
Subnet = tuple[Genome, int]
"""A genome, and its parameters."""


@dataclass(frozen=True)
class Finalist:
    """One training of the race.

    Attributes:
        method: what it is but for rate and teacher.
        origin: the genome of a subnet, which starts with the supernet's weights, or a uniform method.
        params: of the adapter.
        rate: what the learning rate is multiplied by.
        taught: whether it learns from a teacher too.
    """

    method: str
    origin: Genome | Uniform
    params: int
    rate: float = 1.0
    taught: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.method + (f" x{self.rate:g}" if self.rate != 1 else "") + (TAUGHT if self.taught else "")

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    @property
    def uniform(self) -> bool:
        """Whether it is a method that needs no search."""
        return isinstance(self.origin, Uniform)

    @property
    def genome(self) -> Genome | None:
        """Of a subnet."""
        return None if isinstance(self.origin, Uniform) else self.origin


def subnet_finalists(subnets: Sequence[Subnet], *, taught: bool) -> list[Finalist]:
    """The search's best subnets, best first."""
    return [
        Finalist(f"subnet {number}", genome, params, taught=taught)
        for number, (genome, params) in enumerate(subnets, 1)
    ]


def uniform_finalists(methods: Sequence[Uniform], rates: Sequence[float]) -> list[Finalist]:
    """The uniform methods, without a teacher; LoRA at several learning rates."""
    return [
        Finalist(method.name, method, method.params, rate)
        for method in methods
        for rate in (rates if method.rated else (1.0,))
    ]


def taught_twins(found: Sequence[Finalist], losses: Mapping[str, float]) -> list[Finalist]:
    """Each uniform method with a teacher, at the rate that was best without one; the best method first.

    Args:
        losses: finalist -> validation loss.
    """
    best: dict[str, Finalist] = {}
    for one in sorted((one for one in found if one.uniform), key=lambda one: losses[one.name]):
        best.setdefault(one.method, one)
    return [replace(one, taught=True) for one in best.values()]
