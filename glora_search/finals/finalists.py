"""Who competes: the search's best subnets with their inherited weights, and uniform methods from their own starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glora_search.recipe.schema import Finals
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.training.uniform import Uniform, uniform_methods

TAUGHT = " + teacher"
"""How the names of taught finalists end."""


@dataclass(frozen=True)
class Finalist:
    """One training of the race.

    Attributes:
        name: what tables call it.
        method: what it is but for rate and teacher.
        origin: the genome of a subnet, which starts with the supernet's weights, or a uniform method.
        rate: what the learning rate is multiplied by.
        taught: whether it learns from the supernet's subnets too.
        params: of the adapter.
    """

    name: str
    method: str
    origin: Genome | Uniform
    rate: float
    taught: bool
    params: int

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


def finalists(
    found_subnets: Sequence[tuple[Genome, int]],
    methods: Sequence[Uniform],
    *,
    rates: Sequence[float],
    teacher: bool,
) -> list[Finalist]:
    """The field of a race.

    Args:
        found_subnets: genome and parameters of the search's best subnets, taught where there is a teacher.
        methods: the uniform ones.
        rates: of LoRA, as factors of the learning rate.
        teacher: whether there is one; uniform methods then compete with and without it.
    """
    found: list[Finalist] = []
    for number, (genome, params) in enumerate(found_subnets, 1):
        found.append(_named(f"subnet {number}", genome, 1.0, teacher, params))
    for taught in (False, True) if teacher else (False,):
        for method in methods:
            for rate in rates if method.rated else (1.0,):
                found.append(_named(method.name, method, rate, taught, method.params))
    return found


def field_size(space: BoundSpace, settings: Finals, max_params: int | None, *, teacher: bool) -> int:
    """How many compete, where the search finds as many subnets as are asked for."""
    methods = uniform_methods(space, max_params, settings.methods)
    return len(finalists([], methods, rates=settings.rates, teacher=teacher)) + settings.subnets


def _named(method: str, origin: Genome | Uniform, rate: float, taught: bool, params: int) -> Finalist:
    name = method + (f" x{rate:g}" if rate != 1 else "") + (TAUGHT if taught else "")
    return Finalist(name, method, origin, rate, taught, params)


def baseline_of(field: Sequence[Finalist], losses: dict[str, float]) -> list[str]:
    """The tuned baseline: the uniform method, without a teacher, with the lowest loss; and the same one taught.

    They are never dropped, so that a run has its own baseline, trained on equal terms.
    """
    plain: list[Any] = [one for one in field if one.uniform and not one.taught and one.name in losses]
    if not plain:
        return []
    best = min(plain, key=lambda one: losses[one.name])
    twin = [one.name for one in field if one.taught and (one.method, one.rate) == (best.method, best.rate)]
    return [best.name, *(name for name in twin if name in losses)]
