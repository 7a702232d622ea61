"""Who competes: uniform methods, and the search's best subnets, with inherited weights or from scratch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from glora_search.finals.rungs import best_first
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.training.uniform import Uniform
from glora_search.vocabulary import LayerPaths

TAUGHT = " + teacher"
"""How the names of taught finalists end."""
SCRATCH = " from scratch"
"""How the methods of subnets end that inherit nothing."""
TUNED = ", tuned"
"""How the name of the baseline ends if its learning rate was raced; it is otherwise that of a finalist."""
CLOSE = 1.05
"""Of two learning rates whose losses are so near, as a ratio, each can be the better one at the end."""
APART = 0.25
"""The share of the layers in which subnets have to differ. A search's best ones are often one gene apart, and train
alike: two of them are one finalist at twice the cost."""


class Subnet(NamedTuple):
    """A subnet that a search has scored.

    Attributes:
        genome: its choices.
        params: of the adapter.
        loss: its validation loss with inherited weights.
    """

    genome: Genome
    params: int
    loss: float


@dataclass(frozen=True)
class Finalist:
    """One training of the race.

    Attributes:
        method: what it is but for rate and teacher.
        origin: the genome of a subnet, or a uniform method.
        params: of the adapter.
        rate: what the learning rate is multiplied by.
        taught: whether it learns from a teacher too.
        inherits: whether it starts with the supernet's weights.
    """

    method: str
    origin: Genome | Uniform
    params: int
    rate: float = 1.0
    taught: bool = False
    inherits: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.method + (f" x{self.rate:g}" if self.rate != 1 else "") + (TAUGHT if self.taught else "")

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    @property
    def start(self) -> str:
        """The name of what it begins with; it is the same at any learning rate, with a teacher and without one."""
        return replace(self, rate=1.0, taught=False).slug

    @property
    def uniform(self) -> bool:
        """Whether it is a method that needs no search."""
        return isinstance(self.origin, Uniform)

    @property
    def rated(self) -> bool:
        """Whether its method races at several learning rates."""
        return isinstance(self.origin, Uniform) and self.origin.rated

    @property
    def genome(self) -> Genome | None:
        """Of a subnet."""
        return None if isinstance(self.origin, Uniform) else self.origin


def distinct(subnets: Iterable[Subnet], space: BoundSpace, count: int) -> list[Subnet]:
    """The best subnets that have something to train, and in `APART` of the layers other paths than those before them.

    Args:
        subnets: best first.
        count: how many; fewer where there are no others.
    """
    found, known = list[Subnet](), list[list[LayerPaths]]()
    for subnet in subnets:
        if len(found) == count:
            break
        paths = list(space.layer_paths(subnet.genome).values())
        apart = (sum(one != other for one, other in zip(paths, others, strict=True)) for others in known)
        if subnet.params and all(layers >= APART * len(paths) for layers in apart):
            found.append(subnet)
            known.append(paths)
    return found


def subnet_finalists(
    subnets: Sequence[Subnet], to_beat: float, rate: float = 1.0, *, taught: bool = False
) -> list[Finalist]:
    """The search's best subnets, best first; each inherits its weights if they are good, or begins from scratch.

    Args:
        to_beat: the validation loss of the best method that was trained alone. Weights with a lower one are good.
    """
    starts = ((number, subnet, subnet.loss < to_beat) for number, subnet in enumerate(subnets, 1))
    return [
        Finalist(
            f"subnet {number}{'' if good else SCRATCH}",
            subnet.genome,
            subnet.params,
            rate,
            taught=taught,
            inherits=good,
        )
        for number, subnet, good in starts
    ]


def uniform_finalists(methods: Sequence[Uniform], rates: Sequence[float]) -> list[Finalist]:
    """The uniform methods, without a teacher; LoRA at several learning rates."""
    return [
        Finalist(method.name, method, method.params, rate)
        for method in methods
        for rate in (rates if method.rated else (1.0,))
    ]


def best_rates(field: Sequence[Finalist], losses: Mapping[str, float]) -> list[str]:
    """LoRA at its best learning rate, and at the next best one where it is `CLOSE`.

    Args:
        losses: finalist -> validation loss.
    """
    found = best_first({one.name: losses[one.name] for one in field if one.rated})[:2]
    return [name for name in found if losses[name] <= CLOSE * losses[found[0]]]


def rate_of_lora(field: Sequence[Finalist], losses: Mapping[str, float]) -> float:
    """LoRA's best learning rate, which is that of subnets too; 1 where LoRA does not compete."""
    best = best_rates(field, losses)[:1]
    return next((one.rate for one in field if one.name in best), 1.0)


def further_rate(field: Sequence[Finalist], losses: Mapping[str, float]) -> Finalist | None:
    """LoRA at a further learning rate, where its best one is the highest or the lowest of several; None where not.

    It is as far from the best one as that is from its neighbour, as a ratio.

    Args:
        losses: finalist -> validation loss.
    """
    rated = sorted((one for one in field if one.rated), key=lambda one: one.rate)
    if len(rated) < 2:
        return None
    best = min(rated, key=lambda one: losses[one.name])
    beside = {rated[-1].name: rated[-2], rated[0].name: rated[1]}.get(best.name)
    if beside is None:
        return None
    rate = float(f"{best.rate**2 / beside.rate:.3g}")
    return None if rate in {one.rate for one in rated} else replace(best, rate=rate)


def taught_twins(found: Sequence[Finalist], losses: Mapping[str, float]) -> list[Finalist]:
    """Each uniform method with a teacher, at the rate that was best without one, and at the next higher one.

    What is taught overfits later, and bears a higher rate.

    Args:
        losses: finalist -> validation loss.

    Returns:
        The twin of the best one first.
    """
    best: dict[str, Finalist] = {}
    for one in sorted((one for one in found if one.uniform), key=lambda one: losses[one.name]):
        best.setdefault(one.method, one)
    twins = list(best.values())
    for one in best.values():
        higher = [other for other in found if other.method == one.method and other.rate > one.rate]
        twins += sorted(higher, key=lambda other: other.rate)[:1]
    return [replace(one, taught=True) for one in twins]
