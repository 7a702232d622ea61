"""The few subnets that show how a supernet's training goes."""

from __future__ import annotations

import numpy as np

from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome

SHARES = (1, 4, 16)


def probe_subnets(space: BoundSpace, *, max_params: int | None = None) -> dict[str, Genome]:
    """Subnets to evaluate again and again: three sizes, and the uniform methods, LoRA at the largest rank that fits.

    They depend on the space and the budget alone, so that the curves of different trainings compare.

    Args:
        max_params: the search's budget; None is the space's largest size.

    Returns:
        Name -> genome, the largest first. Names are fit for metrics: ``size_1/4``, ``LoRA``, ``BitFit``.
    """
    rng = np.random.default_rng(0)
    smallest, largest = space.params(space.smallest), space.params(space.largest)
    limit = largest if max_params is None else min(max(max_params, smallest), largest)
    probes: dict[str, Genome] = {}
    for share in SHARES:
        start = space.largest if share == 1 else space.sample(rng)
        probes[f"size_1/{share}"] = space.resize(start, max(limit // share, smallest), rng, grow=True)
    for label, genome in space.uniform_methods().items():
        if "query+value" not in label and space.params(genome) <= limit:
            probes[label.partition(" r=")[0].replace(" ", "_")] = genome  # ranks come in order: the last one stays
    return probes
