"""What the searches of the study found: where the paths go, and how far genomes agree."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study_statistics import CELL

PATHS = ("A", "B", "C", "D", "E")
Paths = dict[str, dict[str, Any]]
"""Layer -> its paths and rank, as an adapter's ``path_pattern`` has them; what is left out is none."""


def read_genomes(path: Path) -> list[dict[str, Any]]:
    """The lines of ``genomes.jsonl``, the last of each cell: one that was killed before its row was written has two.

    None where the file is missing.
    """
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list({tuple(line[name] for name in CELL): line for line in lines}.values())


def kind(layer: dict[str, Any], path: str) -> str:
    """Of a path in a layer, with its rank where it is low-rank."""
    found = str(layer.get(path, "none"))
    return f"{found} r={layer.get('r')}" if found == "lora" else found


def block_of(layer: str) -> int:
    """The number of a layer's block, from its name; -1 where it has none."""
    found = re.search(r"\.(\d+)\.", layer)
    return int(found[1]) if found else -1


def role_of(layer: str) -> str:
    """What a layer does in its block: its name behind the block's number."""
    return re.sub(r"^.*?\.\d+\.", "", layer)


def shares(genomes: Sequence[Paths], layers: Sequence[str]) -> dict[str, Counter[str]]:
    """Path -> how often it takes each kind, over genomes and layers."""
    return {path: Counter(kind(one.get(layer, {}), path) for one in genomes for layer in layers) for path in PATHS}


def filled(genomes: Sequence[Paths], layers: Sequence[str], by: Any) -> dict[Any, float]:
    """Group of layers -> the share of its layers that have any path.

    Args:
        by: layer -> group, e.g. `block_of` or `role_of`.
    """
    groups: dict[Any, list[bool]] = {}
    for one, layer in itertools.product(genomes, layers):
        own = one.get(layer, {})
        groups.setdefault(by(layer), []).append(any(kind(own, path) != "none" for path in PATHS))
    return {group: float(np.mean(values)) for group, values in sorted(groups.items())}


def agreement(one: Paths, other: Paths, layers: Sequence[str]) -> float:
    """Cohen's kappa of two genomes over all paths of all layers: 1 is the same, 0 is what chance gives.

    Chance knows how often each genome takes each kind of a path, and not where. nan where nothing can differ.
    """
    agree, expected = [], []
    for path in PATHS:
        first, second = ([kind(genome.get(layer, {}), path) for layer in layers] for genome in (one, other))
        agree += [a == b for a, b in zip(first, second, strict=True)]
        counts, others = Counter(first), Counter(second)
        expected += [sum(counts[value] * others[value] for value in counts) / len(layers) ** 2] * len(layers)
    chance = float(np.mean(expected))
    return (float(np.mean(agree)) - chance) / (1 - chance) if chance < 1 else float("nan")


def mean_agreement(genomes: Sequence[tuple[str, Paths]], layers: Sequence[str], *, same: bool) -> float:
    """The mean of `agreement` over all pairs of genomes of the same data set, or of different ones.

    Args:
        genomes: data set and genome.
    """
    pairs = itertools.combinations(genomes, 2)
    found = [agreement(a, b, layers) for (one, a), (other, b) in pairs if (one == other) == same]
    found = [value for value in found if np.isfinite(value)]
    return float(np.mean(found)) if found else float("nan")
