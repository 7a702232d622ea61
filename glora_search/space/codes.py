"""Genomes as arrays: one index a layer into the different path settings that the layer can take.

Genomes that compute the same function have the same code, so a code is also what the search remembers. The samplers
work on codes: a parameter count is a sum of table entries, and a move is a change of one index.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from glora_search.space.layers import Choice, Genome, SpaceLayer, combinations
from glora_search.vocabulary import LayerPaths

Code = np.ndarray
"""Integers ``[layers]``: the index of each layer's setting in its `LayerTable`."""


class LayerTable:
    """What one layer can take, every function once.

    Attributes:
        values: gene's path -> choice, for each setting; where several choices compute the same, the first of them.
        params: trainable parameters of each setting.
        neighbours: for each setting the settings that a change of one gene leads to, from any of the choices that
            compute it: an absent path's rank is free, so that it can come back with each rank. A setting is its
            neighbours' neighbour, and where there are several settings, each has a neighbour.
        smallest, largest: a setting of the fewest and one of the most parameters.
        features: names of the columns of ``feature_table``: a path and its kind, or that its rank is at least so much.
        feature_table: which settings have which feature, ``[settings, features]`` of 0 and 1.
    """

    def __init__(self, layer: SpaceLayer) -> None:
        self._paths = [gene.path for gene in layer.genes]
        self.values: list[dict[str, Choice]] = []
        functions: dict[LayerPaths, int] = {}
        self._index: dict[tuple[Choice, ...], int] = {}
        for values in combinations(layer.settings):
            built = layer.build(values)
            if built not in functions:
                functions[built] = len(self.values)
                self.values.append({path: values[path] for path in self._paths})
            self._index[tuple(values[path] for path in self._paths)] = functions[built]
        self.params = [layer.params(built) for built in functions]
        self.smallest, self.largest = (self.params.index(size) for size in (min(self.params), max(self.params)))
        self.features, self.feature_table = _features(list(functions))
        self.neighbours = _neighbours(self._index, len(self.values))

    def index(self, values: Mapping[str, Choice]) -> int:
        """The setting with these choices, one for each of the layer's genes.

        Raises:
            KeyError: the layer cannot take them.
        """
        return self._index[tuple(values[path] for path in self._paths)]


def _neighbours(index: Mapping[tuple[Choice, ...], int], settings: int) -> list[list[int]]:
    """For each setting the others that one choice's change leads to.

    Args:
        index: choices of all genes -> setting.
        settings: how many there are.
    """
    found: list[set[int]] = [set() for _ in range(settings)]
    for gene in range(len(next(iter(index)))):
        rest: dict[tuple[Choice, ...], set[int]] = {}  # the other genes' choices -> what this one can make of them
        for choices, setting in index.items():
            rest.setdefault(choices[:gene] + choices[gene + 1 :], set()).add(setting)
        for reached in rest.values():
            for setting in reached:
                found[setting] |= reached
    return [sorted(reached - {setting}) for setting, reached in enumerate(found)]


def _features(settings: list[LayerPaths]) -> tuple[list[str], np.ndarray]:
    ranks = sorted({paths.r for paths in settings if paths.r})
    names: dict[str, int] = {}
    rows = []
    for paths in settings:
        row = [f"{path} {kind}" for path, kind in paths.kinds.items() if kind != "none"]
        lora = [path for path, kind in paths.kinds.items() if kind == "lora"]
        row += [f"{path} rank>={rank}" for path in lora for rank in ranks[1:] if rank <= paths.r]
        rows.append([names.setdefault(name, len(names)) for name in row])
    table = np.zeros((len(settings), len(names)), dtype=np.float32)
    for number, columns in enumerate(rows):
        table[number, columns] = 1.0
    return list(names), table


class Codec:
    """Genome <-> code.

    Args:
        layers: of a bound space.

    Attributes:
        tables: one `LayerTable` a layer, in the space's order; layers of one shape share theirs.
        columns: ``(layer's name, feature)`` of each column of `features`.
    """

    def __init__(self, layers: Sequence[SpaceLayer]) -> None:
        self._layers = list(layers)
        made: dict[str, LayerTable] = {}
        self.tables: list[LayerTable] = []
        for layer in layers:
            shape = repr((layer.in_features, layer.out_features, layer.settings))
            self.tables.append(made[shape] if shape in made else made.setdefault(shape, LayerTable(layer)))
        self._genes = [[(gene.path, gene.name) for gene in layer.genes] for layer in layers]
        self.sizes = np.array([len(table.values) for table in self.tables])
        self._params = np.array([size for table in self.tables for size in table.params], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.sizes)[:-1]])
        self.free = np.flatnonzero(self.sizes > 1)
        self._shapes = [
            (table, np.array([layer for layer, own in enumerate(self.tables) if own is table]))
            for table in dict.fromkeys(self.tables)
        ]
        self.columns = [
            (self._layers[layer].name, name)
            for table, places in self._shapes
            for layer in places
            for name in table.features
        ]

    def encode(self, genome: Mapping[str, Choice]) -> Code:
        """The code of a genome."""
        return np.array(
            [
                table.index({path: genome[name] for path, name in genes})
                for table, genes in zip(self.tables, self._genes, strict=True)
            ],
            dtype=np.int64,
        )

    def decode(self, code: Code) -> Genome:
        """A genome with this code, always the same one."""
        genome: Genome = {}
        for table, genes, index in zip(self.tables, self._genes, code.tolist(), strict=True):
            values = table.values[index]
            for path, name in genes:
                genome[name] = values[path]
        return genome

    def params(self, code: Code) -> int:
        """Trainable parameters."""
        return int(np.add.reduce(self._params.take(self._offsets + code)))

    def features(self, codes: list[Code]) -> np.ndarray:
        """Which kinds and ranks each layer and path has, ``[codes, columns]`` of 0 and 1."""
        block = np.stack(codes)
        parts = [table.feature_table[block[:, layers]].reshape(len(codes), -1) for table, layers in self._shapes]
        return np.concatenate(parts, axis=1)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A short name of the space's layers and choices, by which a study's owner is known."""
        layers = json.dumps([layer.to_dict() for layer in self._layers], sort_keys=True)
        return hashlib.sha256(layers.encode()).hexdigest()[:24]

    @functools.cached_property
    def smallest(self) -> Code:
        """A code of the fewest parameters."""
        return np.array([table.smallest for table in self.tables], dtype=np.int64)

    @functools.cached_property
    def largest(self) -> Code:
        """A code of the most parameters."""
        return np.array([table.largest for table in self.tables], dtype=np.int64)


def key_of(code: Code) -> str:
    """A short name of a code, the same on every machine: what the memo and the claims of workers hold."""
    return hashlib.sha256(code.astype("<i4").tobytes()).hexdigest()[:24]
