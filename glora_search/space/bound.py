"""A search space bound to a model's layers: genes, genomes, what they cost, and which simple methods it holds."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from glora_search.errors import invalid
from glora_search.space.codes import Codec, key_of
from glora_search.space.layers import Choice, Gene, Genome, SpaceLayer
from glora_search.tuners.targets import exact_targets
from glora_search.vocabulary import LayerPaths

if TYPE_CHECKING:
    from glora_search.tuners.glora import GLoraConfig

ATTENTION_QV = (
    *("query", "value", "q_proj", "v_proj", "q", "v", "q_lin", "v_lin", "c_attn", "query_key_value"),
    *("query_proj", "value_proj"),
)
"""Last name of the modules that LoRA's paper adapts, over the architectures of transformers."""


@dataclass
class BoundSpace:
    """A search space bound to a model's layers.

    Attributes:
        layers: every layer that the space adapts, in the model's order.
        namesakes: the model's other modules whose names end like one of the layers'; peft would adapt them as well
            where a config lists the layers by their names.
        genes: every choice to be made, in the order of the layers.
    """

    layers: list[SpaceLayer]
    name: str = "space"
    namesakes: list[str] = field(default_factory=list)
    genes: list[Gene] = field(init=False)

    def __post_init__(self) -> None:
        self.genes = [gene for layer in self.layers for gene in layer.genes]
        self._choices = {gene.name: gene.choices for gene in self.genes}
        self._layers = {layer.name: layer for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """The space as plain data, see `from_dict`."""
        layers = [layer.to_dict() for layer in self.layers]
        return {"name": self.name, "layers": layers, "namesakes": list(self.namesakes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BoundSpace:
        """Rebuild a bound space without its model."""
        layers = [SpaceLayer(**layer) for layer in data["layers"]]
        return cls(layers, name=data["name"], namesakes=list(data.get("namesakes", ())))

    def targets(self, layers: Iterable[str] | None = None) -> list[str] | str:
        """What ``target_modules`` has to be for a config of peft that adapts these layers and no other module.

        Args:
            layers: names of some of the space's layers; None is all of them.

        Returns:
            See `exact_targets`.
        """
        return exact_targets(self._layers if layers is None else layers, [*self._layers, *self.namesakes])

    def count(self) -> int:
        """How many genomes there are; different genomes can compute the same function."""
        return math.prod(len(gene.choices) for gene in self.genes)

    def sample(self, rng: np.random.Generator) -> Genome:
        """A genome with every gene drawn uniformly."""
        return {gene.name: gene.choices[rng.integers(len(gene.choices))] for gene in self.genes}

    def check(self, genome: Mapping[str, Choice]) -> None:
        """Check that every gene has one of its choices, and that there is no other.

        Raises:
            UserError: names the gene, the value and the choices.
        """
        for name, value in genome.items():
            if name not in self._choices:
                raise invalid("genome", name, f"a gene of this space, e.g. {', '.join(list(self._choices)[:3])}")
            if value not in self._choices[name] or isinstance(value, bool):
                raise invalid(f"genome[{name!r}]", value, self._choices[name])
        missing = [name for name in self._choices if name not in genome]
        if missing:
            raise invalid("genome", f"no value for {missing[0]}", f"all {len(self.genes)} genes")

    def layer_paths(self, genome: Mapping[str, Choice]) -> dict[str, LayerPaths]:
        """Layer name -> its paths, in canonical form: what the genome computes."""
        return {layer.name: self._paths_of(layer, genome) for layer in self.layers}

    @staticmethod
    def _paths_of(layer: SpaceLayer, genome: Mapping[str, Choice]) -> LayerPaths:
        values = {path: genome.get(f"{layer.name}.{path}", choices[0]) for path, choices in layer.settings.items()}
        return layer.build(values)

    def key(self, genome: Mapping[str, Choice]) -> str:
        """What the genome computes: two genomes with the same key are the same subnet."""
        return key_of(self.codec.encode(genome))

    def params(self, genome: Mapping[str, Choice]) -> int:
        """The exact number of adapter parameters of the genome's subnet."""
        return sum(layer.params(self._paths_of(layer, genome)) for layer in self.layers)

    @functools.cached_property
    def codec(self) -> Codec:
        """Genomes as arrays."""
        return Codec(self.layers)

    @functools.cached_property
    def smallest(self) -> Genome:
        """A genome of the fewest parameters."""
        return self.codec.decode(self.codec.smallest)

    @functools.cached_property
    def largest(self) -> Genome:
        """A genome of the most parameters."""
        return self.codec.decode(self.codec.largest)

    @functools.cached_property
    def cheapest_to_train(self) -> int:
        """The fewest parameters, above 0, of a subnet; the space has a path that adds some."""
        smallest = self.params(self.smallest)
        return smallest or min(size for table in self.codec.tables for size in table.params if size)

    def check_budget(self, max_params: int | None, key: str = "search.max_params") -> None:
        """Refuse a budget that no subnet meets.

        Raises:
            UserError: names the cheapest subnet's parameters.
        """
        if max_params is not None and self.params(self.smallest) > max_params:
            cheapest = self.params(self.smallest)
            raise invalid(key, max_params, f"at least {cheapest:,}, the parameters of the cheapest subnet")

    def resize(
        self, genome: Mapping[str, Choice], max_params: int, rng: np.random.Generator, *, grow: bool = False
    ) -> Genome:
        """Change random genes, one after the other, until the genome meets a number of parameters.

        Genes get the choices of the smallest or the largest subnet. The supernet's sampling draws with this; for the
        small steps of the evolution see `search.evolution.variation.resized`.

        Args:
            genome: where to start.
            max_params: the result has at most so many.
            grow: also enlarge a genome that is below, as long as it stays below.

        Raises:
            UserError: no subnet is that small.
        """
        self.check_budget(max_params, key="max_params")
        result = self._move(genome, self.smallest, rng, stop_at=max_params)
        return self._move(result, self.largest, rng, stay_below=max_params) if grow else result

    def _move(
        self,
        genome: Mapping[str, Choice],
        towards: Genome,
        rng: np.random.Generator,
        *,
        stop_at: int | None = None,
        stay_below: int | None = None,
    ) -> Genome:
        """Give genes the choices of another genome in random order, until ``stop_at`` parameters are met; a change
        that would exceed ``stay_below`` is left out."""
        result = dict(genome)
        params = self.params(result)
        for index in rng.permutation(len(self.genes)):
            if stop_at is not None and params <= stop_at:
                break
            gene = self.genes[index]
            layer = self._layers[gene.layer]
            changed = {**result, gene.name: towards[gene.name]}
            before, after = (layer.params(self._paths_of(layer, g)) for g in (result, changed))
            if stay_below is None or params + after - before <= stay_below:
                result, params = changed, params + after - before
        return result

    def uniform_methods(self) -> dict[str, Genome]:
        """The uniform methods that the space holds: one path of one kind in all layers, the rest none.

        LoRA (B low-rank) at each rank, (IA)3 (A a vector) and BitFit (E a vector), each on all layers and on query
        and value only. Where the path is tied to another, the pair stands in for it and the name says so.

        Returns:
            Name -> genome.
        """
        ranks = sorted({int(rank) for layer in self.layers for rank in layer.settings.get("r", ()) if rank})
        query_value = [layer.name for layer in self.layers if layer.name.rpartition(".")[2] in ATTENTION_QV]
        methods: dict[str, Genome] = {}
        for name, path, tie, kind in (
            ("LoRA", "B", "A_B", "lora"),
            ("(IA)3", "A", "A_B", "vector"),
            ("BitFit", "E", "D_E", "vector"),
        ):
            for rank in ranks if kind == "lora" else [None]:
                rank_label = f" r={rank}" if rank else ""
                for own, label in ((path, name), (tie, f"{name} as {tie}={kind}")):
                    values: dict[str, Choice] = {own: kind, "r": rank} if rank else {own: kind}
                    for where, suffix in ((list(self._layers), ""), (query_value, " on query+value")):
                        genome = self._uniform(values, where)
                        if genome is not None:
                            methods[label + rank_label + suffix] = genome
        return methods

    def _uniform(self, values: Mapping[str, Choice], where: Iterable[str]) -> Genome | None:
        """The genome with these values in these layers and nothing else; None if the space does not hold it."""
        chosen, used = set(where), False
        genome: Genome = {}
        for layer in self.layers:
            wanted = {name: value for name, value in values.items() if layer.name in chosen and name in layer.settings}
            used = used or bool(wanted.keys() - {"r"})
            full: dict[str, Choice] = {}
            for name, choices in layer.settings.items():
                if name in wanted:
                    full[name] = wanted[name]
                elif name == "r":
                    # Where no path stays low-rank any rank is the same; rank 0 also turns off one that has to be.
                    full[name] = min(choices)
                else:
                    full[name] = "none" if "none" in choices else choices[0]
            target = layer.build({**dict.fromkeys(layer.settings, "none"), **wanted, "r": wanted.get("r", 0)})
            if any(value not in layer.settings[name] for name, value in full.items()) or layer.build(full) != target:
                return None
            genome |= {gene.name: full[gene.path] for gene in layer.genes}
        return genome if used else None

    def to_config(self, genome: Mapping[str, Choice], **kwargs: Any) -> GLoraConfig:
        """The fixed configuration of the genome's subnet.

        Args:
            genome: one choice a gene.
            kwargs: further fields of `GLoraConfig`, e.g. ``task_type``.

        Returns:
            A config that targets the layers with any path, and no other module; see `targets`.
        """
        from glora_search.tuners.glora.config import paths_to_config

        self.check(genome)
        return paths_to_config(self.layer_paths(genome), self.namesakes, **kwargs)

    def from_config(self, config: GLoraConfig) -> Genome:
        """The genome that a fixed configuration came from (of several that compute the same, the first).

        Raises:
            UserError: the space does not hold it; the message names the layer.
        """
        from glora_search.space.configs import genome_of

        return genome_of(config, self.layers)
