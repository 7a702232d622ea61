"""Who competes: the search's best subnets with their inherited weights, and uniform methods from their own starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glora_search.recipe.schema import Finals
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.training.baselines import fitting_lora

SIMPLE = ("(IA)3", "BitFit")
"""Uniform methods beside LoRA that need no rank."""


@dataclass(frozen=True)
class Finalist:
    """One training of the race.

    Attributes:
        name: what tables call it.
        method: what it is but for rate and teacher.
        genome: the subnet; None is peft's own LoRA at the largest rank within the budget.
        inherits: whether it starts with the supernet's weights.
        rate: what the learning rate is multiplied by.
        taught: whether it learns from the supernet's subnets too.
        params: of the adapter.
    """

    name: str
    method: str
    genome: Genome | None
    inherits: bool
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
        return not self.inherits


def finalists(
    space: BoundSpace,
    found_subnets: Sequence[tuple[Genome, int]],
    *,
    rates: Sequence[float],
    lora: tuple[str, int] | None,
    max_params: int | None,
    teacher: bool,
) -> list[Finalist]:
    """The field of a race.

    Args:
        space: the bound space.
        found_subnets: genome and parameters of the search's best subnets, taught where there is a teacher.
        rates: of LoRA, as factors of the learning rate.
        lora: name and parameters of the LoRA that fits the budget; None where none does.
        max_params: the budget.
        teacher: whether there is one; uniform methods then compete with and without it.
    """
    found: list[Finalist] = []
    for number, (genome, params) in enumerate(found_subnets, 1):
        found.append(_named(f"subnet {number}", genome, True, 1.0, teacher, params))
    for taught in (False, True) if teacher else (False,):
        if lora is not None:
            found += [_named(lora[0], None, False, rate, taught, lora[1]) for rate in rates]
        for name, genome in space.uniform_methods().items():
            params = space.params(genome)
            if name in SIMPLE and (max_params is None or params <= max_params):
                found.append(_named(name, genome, False, 1.0, taught, params))
    return found


def field_size(space: BoundSpace, settings: Finals, max_params: int | None, *, teacher: bool) -> int:
    """How many compete, where the search finds as many subnets as are asked for."""
    fits = fitting_lora(space, max_params)
    lora = None if fits is None else ("", 0)
    uniform = finalists(space, [], rates=settings.rates, lora=lora, max_params=max_params, teacher=teacher)
    return len(uniform) + settings.subnets


def _named(method: str, genome: Genome | None, inherits: bool, rate: float, taught: bool, params: int) -> Finalist:
    name = method + (f" x{rate:g}" if rate != 1 else "") + (" + teacher" if taught else "")
    return Finalist(name, method, genome, inherits, rate, taught, params)


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
