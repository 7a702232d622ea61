"""The search space: a YAML file, bound to a model's layers; genomes, their codes and their configs."""

from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Code, Codec, key_of
from glora_search.space.layers import Choice, Gene, Genome, SpaceLayer
from glora_search.space.schema import Choices, SearchSpace

__all__ = ["BoundSpace", "Choice", "Choices", "Code", "Codec", "Gene", "Genome", "SearchSpace", "SpaceLayer", "key_of"]
