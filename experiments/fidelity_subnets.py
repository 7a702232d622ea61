"""The subnets that fidelity.py measures: the same ones in every run, whatever trains them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np

from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Choice, Genome

SPACE = Path(__file__).resolve().parent / "spaces" / "fidelity.yaml"
ANCHORS = ("LoRA r=1", "LoRA r=4", "(IA)3", "BitFit")
SMALLEST = 4_000  # adapter parameters of the smallest drawn subnets
SUBNETS_SEED = 2024  # of the subnets that are measured; no training draws with it


def measured_subnets(space: BoundSpace) -> dict[str, Genome]:
    """24 subnets over the range of parameter counts: 8 uniform methods, 8 mixed ones and 8 structured ones.

    A mixed one is drawn gene by gene; a structured one takes the same paths in every block, as people design adapters.
    """
    methods = space.uniform_methods()
    subnets = {f"{name}{where}": methods[f"{name}{where}"] for name in ANCHORS for where in ("", " on query+value")}
    rng = np.random.default_rng(SUBNETS_SEED)
    largest = space.params(space.largest)
    for number, size in enumerate(np.geomspace(SMALLEST, 0.9 * largest, 8)):
        subnets[f"mixed {number}"] = space.resize(space.sample(rng), int(size), rng, grow=True)
    drawn = [structured(space, rng) for _ in range(1000)]
    sizes = np.array([space.params(genome) for genome in drawn], dtype=float)
    for number, size in enumerate(np.geomspace(SMALLEST, 0.6 * largest, 8)):
        nearest = int(np.abs(np.log(sizes + 1) - np.log(size)).argmin())
        subnets[f"structured {number}"], sizes[nearest] = drawn[nearest], np.inf
    assert len({space.key(genome) for genome in subnets.values()}) == len(subnets)
    return subnets


def structured(space: BoundSpace, rng: np.random.Generator) -> Genome:
    """One draw for each place in a block, the same in all blocks; most paths of most places are left out."""
    values: dict[str, Choice] = {}
    density = rng.uniform(0.1, 0.6)
    genome: Genome = {}
    for gene in space.genes:
        place = re.sub(r"\d+", "*", gene.name)
        if place not in values:
            kinds = [choice for choice in gene.choices if choice != "none"]
            absent = gene.path != "r" and rng.random() > density
            values[place] = "none" if absent else kinds[rng.integers(len(kinds))]
        genome[gene.name] = values[place]
    return genome


def key_of(space: BoundSpace, genome: Genome) -> str:
    """What a genome computes, as a short name that is the same in every process."""
    return hashlib.sha256(repr(tuple(space.layer_paths(genome).values())).encode()).hexdigest()[:12]
