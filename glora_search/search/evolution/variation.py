"""How a genome becomes another one: few genes change, and the parameter count stays near the parent's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import numpy as np
from pydantic import Field

from glora_search.files.arguments import Share, checked_arguments
from glora_search.space.codes import Code, Codec

Changes = Annotated[float, Field(ge=1, allow_inf_nan=False, description="a number >= 1")]


def resized(
    codec: Codec,
    code: Code,
    max_params: int | None,
    rng: np.random.Generator,
    *,
    grow: bool = False,
    keep: Collection[int] = (),
) -> Code:
    """Change single genes of random layers until a code has at most so many parameters.

    Two ways of resizing draw different genomes. This one moves a layer to a neighbouring function, by small steps: the
    default evolution and the neighbours of Optuna's proposals use it. `BoundSpace.resize` gives genes the choices of
    the smallest or the largest subnet: the supernet's sampling uses it, and the paper's sampler where nothing else
    fits. Published figures rest on both, so both stay.

    Args:
        max_params: the result has at most so many; None leaves the code as it is.
        grow: also enlarge a code that is below, as long as it stays below.
        keep: layers not to touch as long as the others suffice.
    """
    params = codec.params(code)
    if max_params is None or (params <= max_params and not grow):
        return code
    result = code.tolist()
    order = rng.permutation(codec.free).tolist()
    if keep:
        order = [layer for layer in order if layer not in keep] + [layer for layer in order if layer in keep]
    # One gene at a time shrinks a code gently; a layer's smallest setting is the last resort.
    for last in (False, True):
        for layer in order:
            if params <= max_params:
                break
            table, own = codec.tables[layer], result[layer]
            options = [table.smallest] if last else table.neighbours[own]
            options = [option for option in options if table.params[option] < table.params[own]]
            if options:
                result[layer] = _one(options, rng)
                params += table.params[result[layer]] - table.params[own]
    for layer in order if grow else ():
        table, own = codec.tables[layer], result[layer]
        room = table.params[own] + max_params - params
        options = [option for option in table.neighbours[own] if table.params[own] < table.params[option] <= room]
        if options:
            result[layer] = _one(options, rng)
            params += table.params[result[layer]] - table.params[own]
    return np.array(result, dtype=np.int64)


class GiveAndTake:
    """A mutation: single genes of few layers change, and other layers give or take what that costs or frees.

    Args:
        changes: the mean number of genes that change first, 1 or more.
        keep_size: the share of mutants that are brought back to their parent's size; the others keep the size that
            the changes gave them, as long as it fits.
    """

    @checked_arguments()
    def __init__(self, changes: Changes = 2.0, keep_size: Share = 0.5) -> None:
        self.changes, self.keep_size = changes, keep_size

    def __call__(self, codec: Codec, parent: Code, max_params: int | None, rng: np.random.Generator) -> Code:
        """A mutant; the parent itself where the space has one function only."""
        if not len(codec.free):
            return parent
        child, kept = parent.copy(), set()
        for _ in range(rng.geometric(1 / self.changes)):
            layer = int(codec.free[int(rng.random() * len(codec.free))])
            child[layer] = _one(codec.tables[layer].neighbours[child[layer]], rng)
            kept.add(layer)
        if rng.random() < self.keep_size:
            size = codec.params(parent)
            freed = size - codec.params(child)
            child = self._take(codec, child, freed, rng, kept) if freed > 0 else child
            child = resized(codec, child, size, rng, keep=kept)
        return resized(codec, child, max_params, rng, keep=kept)

    @staticmethod
    def _take(codec: Codec, child: Code, room: int, rng: np.random.Generator, kept: Collection[int]) -> Code:
        """Enlarge other layers by what was freed, each by the gene that fits best, until hardly any is left."""
        result, params = child.tolist(), codec.params(child)
        for layer in rng.permutation(codec.free).tolist():
            table, own = codec.tables[layer], result[layer]
            growth = [table.params[option] - table.params[own] for option in table.neighbours[own]]
            best = max((size for size in growth if 0 < size <= room), default=0)
            if best and layer not in kept:
                result[layer] = table.neighbours[own][growth.index(best)]
                room, params = room - best, params + best
            if room * 4 * len(codec.free) < params:
                break  # less than a quarter of a layer's mean share
        return np.array(result, dtype=np.int64)


class LayerCrossover:
    """A crossover: every layer from one of two parents, then moved into the budget.

    Args:
        share: of the layers that come from the second parent.
    """

    @checked_arguments()
    def __init__(self, share: Share = 0.5) -> None:
        self.share = share

    def __call__(
        self, codec: Codec, first: Code, second: Code, max_params: int | None, rng: np.random.Generator
    ) -> Code:
        """A child of two parents."""
        child = np.where(rng.random(len(first)) < self.share, second, first)
        return resized(codec, child, max_params, rng)


def _one(options: list[int], rng: np.random.Generator) -> int:
    # Many times faster than rng.integers, and called for every gene of every candidate.
    return options[int(rng.random() * len(options))]
