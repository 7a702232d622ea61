"""One layer of a bound space: its genes, and the paths that their choices build."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glora_search.vocabulary import TIED, LayerPaths

Choice = str | int
Genome = dict[str, Choice]
"""Gene name -> the choice made: a kind, or a rank."""


@dataclass(frozen=True)
class Gene:
    """One choice to be made: a path's kind in one layer, or the layer's rank.

    Attributes:
        name: ``<layer>.<path>``, or ``<layer>.r``.
        layer: the module's full name.
        path: a path, a tied pair, or ``r``.
        choices: what it may take.
    """

    name: str
    layer: str
    path: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class SpaceLayer:
    """One layer of a bound space.

    Attributes:
        name: full module name.
        in_features, out_features: its size.
        has_bias: without a bias there is no C, D and E.
        kinds: path or tied pair -> kinds to choose from.
        ranks: ranks to choose from.
    """

    name: str
    in_features: int
    out_features: int
    has_bias: bool
    kinds: dict[str, list[str]]
    ranks: list[int]

    @functools.cached_property
    def settings(self) -> dict[str, tuple[Choice, ...]]:
        """Path, tied pair or ``r`` -> choices, for what this layer has."""
        found: dict[str, tuple[Choice, ...]] = {
            path: tuple(kinds)
            for path, kinds in sorted(self.kinds.items())
            if self.has_bias or TIED.get(path, (path,))[0] in ("A", "B")
        }
        low_rank = any("lora" in kinds for kinds in found.values())
        return {**found, "r": tuple(self.ranks)} if low_rank else found

    @functools.cached_property
    def genes(self) -> list[Gene]:
        """The settings with more than one choice."""
        return [
            Gene(f"{self.name}.{path}", self.name, path, choices)
            for path, choices in self.settings.items()
            if len(choices) > 1
        ]

    def build(self, values: Mapping[str, Choice]) -> LayerPaths:
        """The paths that result from one value a setting."""
        return _build(tuple(sorted(values.items())))

    def to_dict(self) -> dict[str, Any]:
        """The layer as plain data; ``SpaceLayer(**data)`` is the layer again."""
        names = ("name", "in_features", "out_features", "has_bias", "kinds", "ranks")
        return {name: getattr(self, name) for name in names}

    def params(self, paths: LayerPaths) -> int:
        """Trainable parameters of these paths on this layer."""
        return paths.params(self.in_features, self.out_features)


@functools.lru_cache(maxsize=65536)
def _build(values: tuple[tuple[str, Choice], ...]) -> LayerPaths:
    kinds: dict[str, Any] = {}
    for name, kind in values:
        if name != "r":
            kinds.update(dict.fromkeys(TIED.get(name, (name,)), kind))
    return LayerPaths(**kinds, r=int(dict(values).get("r", 0)))


def combinations(settings: Mapping[str, Sequence[Choice]]) -> list[dict[str, Choice]]:
    """Every way to make these choices; the last setting's vary first."""
    combinations: list[dict[str, Choice]] = [{}]
    for name, choices in settings.items():
        combinations = [{**partial, name: choice} for partial in combinations for choice in choices]
    return combinations
