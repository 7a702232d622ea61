"""The search space: a checked YAML file that, bound to a model, gives one gene per layer and path."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
from peft.tuners.tuners_utils import _ExcludedModule, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationInfo, field_validator, model_validator
from torch import nn

from glora_search.errors import UserError, check_pattern, invalid
from glora_search.files import find_shipped, load_yaml, validate
from glora_search.paths import PATHS, TIED, LayerPaths, check_kind
from glora_search.tuners.glora import GLoraConfig
from glora_search.tuners.glora.layer import base_linear, linear_features

SEQ_CLS_HEAD_NAMES = ("classifier", "score")
"""What peft trains and saves in a sequence classification model, by the end of the module's name."""

Choice = str | int
Genome = dict[str, Choice]
"""Gene name -> the choice made: a kind, or a rank."""

ATTENTION_QV = (
    *("query", "value", "q_proj", "v_proj", "q", "v", "q_lin", "v_lin", "c_attn", "query_key_value"),
    *("query_proj", "value_proj"),
)
"""Last name of the modules that LoRA's paper adapts, over the architectures of transformers."""


class Choices(BaseModel):
    """What the layers of one pattern may take; what is left out follows the space."""

    model_config = ConfigDict(extra="forbid")

    paths: dict[str, list[str]] = Field(default_factory=dict)
    ranks: list[StrictInt] | None = None

    @field_validator("paths")
    @classmethod
    def _check_paths(cls, paths: dict[str, list[str]]) -> dict[str, list[str]]:
        checked: dict[str, list[str]] = {}
        for name, kinds in paths.items():
            if name not in PATHS and name not in TIED:
                raise invalid("paths", name, [*TIED, *PATHS])
            if not kinds:
                raise invalid(f"paths.{name}", kinds, "at least one kind")
            checked[name] = list(dict.fromkeys(check_kind(f"paths.{name}", name, kind) for kind in kinds))
        for tie, members in TIED.items():
            if tie in paths and any(member in paths for member in members):
                raise invalid("paths", tie, f"either {tie} (tied) or {' and '.join(members)} (free), not both")
        return checked

    @field_validator("ranks")
    @classmethod
    def _check_ranks(cls, ranks: list[int] | None) -> list[int] | None:
        if ranks is not None and (not ranks or min(ranks) < 0):
            raise invalid("ranks", ranks, "a list of ints >= 0 (0: no low-rank path)")
        return None if ranks is None else sorted(set(ranks))


class SearchSpace(Choices):
    """Which paths each layer of a model may take.

    Attributes:
        name: what the space is called.
        description: one line for listings.
        targets: modules to adapt, in the semantics of peft's ``target_modules``.
        exclude: modules not to adapt, in the semantics of peft's ``exclude_modules``.
        paths: path (or tied pair) -> the kinds it may take; a path that is left out is none.
        ranks: ranks of the low-rank paths; with several, the rank is a gene of its own in every layer.
        overrides: module-name pattern (matched as peft matches ``rank_pattern``) -> other paths or ranks.

    Source: arXiv 2306.07967, section 3.3; tied pairs as in peft's GLoRA.
    """

    name: str = "space"
    description: str = ""
    targets: str | list[str] = "all-linear"
    exclude: str | list[str] | None = None
    paths: dict[str, list[str]]
    ranks: list[StrictInt] = Field(default_factory=lambda: [4])
    overrides: dict[str, Choices] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_not_empty(self) -> SearchSpace:
        if not self.paths:
            raise invalid("paths", self.paths, "at least one path")
        return self

    @field_validator("targets", "exclude", mode="before")
    @classmethod
    def _check_modules(cls, value: Any, info: ValidationInfo) -> Any:
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if not names and not isinstance(value, str) and not (value is None and info.field_name == "exclude"):
            raise invalid(str(info.field_name), value, "module names, or a regular expression")
        if isinstance(value, str):
            check_pattern(str(info.field_name), value)
        return value

    @field_validator("overrides")
    @classmethod
    def _check_overrides(cls, overrides: dict[str, Choices]) -> dict[str, Choices]:
        for pattern in overrides:
            check_pattern("overrides", pattern)
        return overrides

    @classmethod
    def load(cls, path: str | Path) -> SearchSpace:
        """Read a space from a file, or from the spaces that come with the package.

        Args:
            path: a YAML file, or a shipped one by ``search_spaces/<name>.yaml`` or by ``<name>``.

        Raises:
            UserError: no such file; an unknown key, path or kind.
        """
        found = find_shipped("search_spaces", path, key="space")
        return validate(cls, {"name": found.stem, **load_yaml(found)}, source=str(found))

    def choices_for(self, module_name: str) -> tuple[dict[str, list[str]], list[int]]:
        """``(path -> kinds, ranks)`` of one module, its override applied."""
        override = self.overrides.get(self._override_of(module_name), Choices())
        paths = dict(self.paths)
        for name, kinds in override.paths.items():
            for tie, members in TIED.items():
                if name == tie:
                    paths = {path: own for path, own in paths.items() if path not in members}
                elif name in members and tie in paths:  # the other of the pair keeps the space's kinds, now free
                    paths |= dict.fromkeys(members, paths.pop(tie))
            paths[name] = kinds
        return paths, override.ranks if override.ranks is not None else self.ranks

    def layer(self, name: str = "layer", size: int = 1) -> SpaceLayer:
        """A square layer with a bias under this name, for what can be said of a space without a model."""
        return SpaceLayer(name, size, size, True, *self.choices_for(name))

    def bind(self, model: nn.Module, modules_to_save: Sequence[str] = ()) -> BoundSpace:
        """Match the space against a model's layers.

        Args:
            model: the base model.
            modules_to_save: modules that are trained as they are, in peft's semantics; what is inside of them is not
                adapted. A classifier is always among them.

        Raises:
            UserError: no layer matches, one that matches cannot be adapted, or an override matches no layer.
        """
        saved = tuple(modules_to_save) + (SEQ_CLS_HEAD_NAMES if _task_type(model) == "SEQ_CLS" else ())
        heads = [name for name, _ in model.named_modules() if name.endswith(saved)] if saved else []
        config = peft.LoraConfig(target_modules=self.targets, exclude_modules=self.exclude, task_type=_task_type(model))
        config = _maybe_include_all_linear_layers(config, model)
        layers = []
        for name, module in model.named_modules():
            matched = check_target_module_exists(config, name) if name else False
            inside = any(name == head or name.startswith(f"{head}.") for head in heads)
            if matched and not isinstance(matched, _ExcludedModule) and not inside:
                base = base_linear(module, name)
                has_bias = getattr(base, "bias", None) is not None
                layers.append(SpaceLayer(name, *linear_features(base), has_bias, *self.choices_for(name)))
        if not layers:
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            raise invalid(
                "space.targets",
                self.targets,
                f"names that match a layer of {type(model).__name__}, e.g. {', '.join(linear[:4]) or 'none'}"
                + (f" (exclude is {self.exclude!r})" if self.exclude else ""),
            )
        for pattern in self.overrides:
            if not any(self._override_of(layer.name) == pattern for layer in layers):
                raise invalid("space.overrides", pattern, f"patterns that match a layer, e.g. of {layers[0].name}")
        return BoundSpace(layers, name=self.name)

    def _override_of(self, module_name: str) -> str:
        if module_name in self.overrides:
            return module_name
        return get_pattern_key(list(self.overrides), module_name)


def _task_type(model: nn.Module) -> str | None:
    """peft leaves a classifier out of ``all-linear`` only where the task says that there is one."""
    heads = ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
    return "SEQ_CLS" if any(head in type(model).__name__ for head in heads) else None


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


@dataclass
class BoundSpace:
    """A search space bound to a model's layers.

    Attributes:
        layers: every layer that the space adapts, in the model's order.
        genes: every choice to be made, in the order of the layers.
    """

    layers: list[SpaceLayer]
    name: str = "space"
    genes: list[Gene] = field(init=False)

    def __post_init__(self) -> None:
        self.genes = [gene for layer in self.layers for gene in layer.genes]
        self._choices = {gene.name: gene.choices for gene in self.genes}
        self._layers = {layer.name: layer for layer in self.layers}

    def to_dict(self) -> dict[str, Any]:
        """The space as plain data, see `from_dict`."""
        names = ("name", "in_features", "out_features", "has_bias", "kinds", "ranks")
        return {"name": self.name, "layers": [{name: getattr(layer, name) for name in names} for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BoundSpace:
        """Rebuild a bound space without its model."""
        return cls([SpaceLayer(**layer) for layer in data["layers"]], name=data["name"])

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

    def encode(self, genome: Mapping[str, Choice]) -> tuple[int, ...]:
        """The genome as one index a gene."""
        return tuple(gene.choices.index(genome[gene.name]) for gene in self.genes)

    def decode(self, indexes: Sequence[int]) -> Genome:
        """The inverse of `encode`."""
        return {gene.name: gene.choices[index] for gene, index in zip(self.genes, indexes, strict=True)}

    def layer_paths(self, genome: Mapping[str, Choice]) -> dict[str, LayerPaths]:
        """Layer name -> its paths, in canonical form: what the genome computes."""
        return {layer.name: self._paths_of(layer, genome) for layer in self.layers}

    @staticmethod
    def _paths_of(layer: SpaceLayer, genome: Mapping[str, Choice]) -> LayerPaths:
        values = {path: genome.get(f"{layer.name}.{path}", choices[0]) for path, choices in layer.settings.items()}
        return layer.build(values)

    def key(self, genome: Mapping[str, Choice]) -> tuple[LayerPaths, ...]:
        """What the genome computes, hashable: two genomes with the same key are the same subnet."""
        return tuple(self.layer_paths(genome).values())

    def params(self, genome: Mapping[str, Choice]) -> int:
        """The exact number of adapter parameters of the genome's subnet."""
        return sum(layer.params(self._paths_of(layer, genome)) for layer in self.layers)

    def _extreme(self, largest: bool) -> Genome:
        genome: Genome = {}
        for layer in self.layers:
            best: tuple[int, dict[str, Choice]] | None = None
            for values in _combinations(layer.settings):
                cost = layer.params(layer.build(values)) * (-1 if largest else 1)
                if best is None or cost < best[0]:
                    best = (cost, values)
            assert best is not None
            genome |= {gene.name: best[1][gene.path] for gene in layer.genes}
        return genome

    @functools.cached_property
    def smallest(self) -> Genome:
        """A genome of the fewest parameters."""
        return self._extreme(largest=False)

    @functools.cached_property
    def largest(self) -> Genome:
        """A genome of the most parameters."""
        return self._extreme(largest=True)

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
            A config that targets the layers with any path by their full names; outside of ``path_pattern`` every path
            is none, so that a module which happens to match as well stays as it is.
        """
        self.check(genome)
        return paths_to_config(self.layer_paths(genome), **kwargs)

    def from_config(self, config: GLoraConfig) -> Genome:
        """The genome that a fixed configuration came from (of several that compute the same, the first).

        Raises:
            UserError: the space does not hold it; the message names the layer.
        """
        genome: Genome = {}
        targets = config.target_modules or ()
        for layer in self.layers:
            targeted = bool(check_target_module_exists(config, layer.name)) if targets != "all-linear" else True
            wanted = config.paths_for(layer.name, has_bias=layer.has_bias) if targeted else LayerPaths()
            for values in _combinations(layer.settings):
                if layer.build(values) == wanted:
                    genome |= {gene.name: values[gene.path] for gene in layer.genes}
                    break
            else:
                raise UserError(f"config: {layer.name} has {wanted.describe()}, which this space does not hold")
        return genome


def paths_to_config(layer_paths: Mapping[str, LayerPaths], **kwargs: Any) -> GLoraConfig:
    """A `GLoraConfig` with exactly these paths."""
    used = {name: paths for name, paths in layer_paths.items() if not paths.empty} or dict(layer_paths)
    pattern = {
        name: {**{p: k for p, k in paths.kinds.items() if k != "none"}, **({"r": paths.r} if paths.r else {})}
        for name, paths in used.items()
    }
    # peft matches the end of a name: a layer without paths whose name ends like one with paths has to say so itself.
    pattern |= {name: {} for name in layer_paths if name not in used and any(name.endswith(f".{u}") for u in used)}
    return GLoraConfig(
        r=max(1, *(paths.r for paths in used.values())) if used else 1,
        target_modules=sorted(used),
        config_A_B="none",
        config_C="none",
        config_D_E="none",
        path_pattern=pattern,
        **kwargs,
    )


def _combinations(settings: Mapping[str, Sequence[Choice]]) -> list[dict[str, Choice]]:
    combinations: list[dict[str, Choice]] = [{}]
    for name, choices in settings.items():
        combinations = [{**partial, name: choice} for partial in combinations for choice in choices]
    return combinations
