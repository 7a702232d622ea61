"""A subnet as a `GLoraConfig`, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glora_search.compat import check_target_module_exists
from glora_search.errors import UserError
from glora_search.space.layers import Genome, SpaceLayer, combinations
from glora_search.tuners.glora import GLoraConfig
from glora_search.tuners.targets import exact_targets
from glora_search.vocabulary import LayerPaths


def paths_to_config(layer_paths: Mapping[str, LayerPaths], namesakes: Iterable[str] = (), **kwargs: Any) -> GLoraConfig:
    """A `GLoraConfig` with exactly these paths.

    Args:
        namesakes: the model's other modules whose names end like one of these layers'.
        kwargs: further fields of the config.
    """
    used = {name: paths for name, paths in layer_paths.items() if not paths.empty} or dict(layer_paths)
    pattern = {
        name: {**{p: k for p, k in paths.kinds.items() if k != "none"}, **({"r": paths.r} if paths.r else {})}
        for name, paths in used.items()
    }
    return GLoraConfig(
        r=max(1, *(paths.r for paths in used.values())) if used else 1,
        target_modules=exact_targets(used, [*layer_paths, *namesakes]),
        config_A_B="none",
        config_C="none",
        config_D_E="none",
        path_pattern=pattern,
        **kwargs,
    )


def genome_of(config: GLoraConfig, layers: Sequence[SpaceLayer]) -> Genome:
    """The genome that a fixed configuration came from, see `BoundSpace.from_config`."""
    genome: Genome = {}
    targets = config.target_modules or ()
    for layer in layers:
        targeted = bool(check_target_module_exists(config, layer.name)) if targets != "all-linear" else True
        wanted = config.paths_for(layer.name, has_bias=layer.has_bias) if targeted else LayerPaths()
        for values in combinations(layer.settings):
            if layer.build(values) == wanted:
                genome |= {gene.name: values[gene.path] for gene in layer.genes}
                break
        else:
            raise UserError(f"config: {layer.name} has {wanted.describe()}, which this space does not hold")
    return genome
