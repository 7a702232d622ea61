"""The subnet of a `GLoraConfig`; for the way there see `paths_to_config`."""

from __future__ import annotations

from collections.abc import Sequence

from glora_search.compat import check_target_module_exists
from glora_search.errors import UserError, invalid
from glora_search.space.layers import Genome, SpaceLayer, combinations
from glora_search.tuners.glora import GLoraConfig
from glora_search.vocabulary import LayerPaths


def genome_of(config: GLoraConfig, layers: Sequence[SpaceLayer]) -> Genome:
    """The genome that a fixed configuration came from, see `BoundSpace.from_config`."""
    genome: Genome = {}
    if config.target_modules is None:
        raise invalid("config.target_modules", None, "names of layers, or all-linear: peft's defaults are of a model")
    targets = config.target_modules
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
