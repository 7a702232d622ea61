"""Genomes as codes: one code for each function, the space's own parameter counts, and moves between them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_search.space.bound import BoundSpace
from glora_search.space.codes import LayerTable, key_of
from glora_search.space.layers import SpaceLayer, combinations
from glora_search.vocabulary import KINDS, TIED

SPACES = ["odd", "glora", "glora-paper", "glora-ranks", "lora-ranks"]


@st.composite
def any_layer(draw):
    """A layer of a random space: any paths, tied or free, of any of their kinds, and any ranks."""
    names = [name for tie, pair in TIED.items() for name in draw(st.sampled_from([[tie], list(pair)]))] + ["C"]
    chosen = draw(st.lists(st.sampled_from(sorted(names)), min_size=1, unique=True))
    kinds = {
        name: draw(st.lists(st.sampled_from(KINDS[TIED.get(name, (name,))[0]]), min_size=1, unique=True))
        for name in chosen
    }
    ranks = draw(st.lists(st.integers(0, 8), min_size=1, max_size=4, unique=True))
    return SpaceLayer("layer", 6, 4, draw(st.booleans()), kinds, sorted(ranks))


@pytest.mark.parametrize("name", SPACES)
def test_a_code_decodes_to_a_genome_of_the_same_function_and_size(bind, name):
    space = bind(name)
    codec, rng = space.codec, np.random.default_rng(0)
    for _ in range(20):
        genome = space.sample(rng)
        code = codec.encode(genome)
        again = codec.decode(code)
        space.check(again)
        assert space.key(again) == space.key(genome)
        assert codec.params(code) == space.params(genome)
        assert (codec.encode(again) == code).all()
    assert codec.params(codec.smallest) == space.params(space.smallest)
    assert codec.params(codec.largest) == space.params(space.largest)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_codes_and_keys_are_equal_exactly_if_the_genomes_compute_the_same(bind, one, two):
    space = bind("odd")
    codec = space.codec
    first, second = (space.sample(np.random.default_rng(seed)) for seed in (one, two))
    # Nearly the same genome: only the ranks of the second, which matter only where a path is low-rank.
    mixed = {name: (second if name.endswith(".r") else first)[name] for name in first}
    for other in (second, mixed):
        same = space.key(first) == space.key(other)
        assert (key_of(codec.encode(first)) == key_of(codec.encode(other))) == same


@settings(max_examples=200)
@given(any_layer())
def test_two_settings_are_neighbours_exactly_if_some_of_their_choices_differ_in_one_gene(layer):
    table, paths = LayerTable(layer), [gene.path for gene in layer.genes]
    ways = [[] for _ in table.values]
    for values in combinations(layer.settings):
        ways[table.index(values)].append(values)
    for one, neighbours in enumerate(table.neighbours):
        assert neighbours == [
            other
            for other in range(len(ways))
            if other != one
            and any(sum(a[path] != b[path] for path in paths) == 1 for a in ways[one] for b in ways[other])
        ]


@settings(max_examples=200)
@given(any_layer())
def test_neighbourhood_is_symmetric_and_each_of_several_settings_has_a_neighbour(layer):
    neighbours = LayerTable(layer).neighbours
    assert all(one in neighbours[other] for one, others in enumerate(neighbours) for other in others)
    assert all(others or len(neighbours) == 1 for others in neighbours)


def test_an_absent_path_can_come_back_with_each_rank(bind):
    for layer, table in zip(bind("glora-ranks").layers, bind("glora-ranks").codec.tables, strict=True):
        absent = table.index({gene.path: "none" if gene.path != "r" else 1 for gene in layer.genes})
        found = [table.values[setting] for setting in table.neighbours[absent]]
        assert {values["r"] for values in found if values["B"] == "lora"} == {1, 2, 4, 8}


@pytest.mark.parametrize("name", ["glora", "glora-paper", "lora-ranks"])
def test_where_no_two_genomes_compute_the_same_neighbours_are_the_changes_of_one_gene_in_order(bind, name):
    # What is drawn depends on this order: figures of these spaces were published.
    for layer, table in zip(bind(name).layers, bind(name).codec.tables, strict=True):
        choices = {gene.path: gene.choices for gene in layer.genes}
        for setting, values in enumerate(table.values):
            changed = {table.index({**values, path: choice}) for path in choices for choice in choices[path]}
            assert table.neighbours[setting] == sorted(changed - {setting})


def test_features_tell_every_setting_of_a_layer_apart(bind):
    space = bind("odd")
    codec = space.codec
    for table in codec.tables:
        rows = {tuple(row) for row in table.feature_table.tolist()}
        assert len(rows) == len(table.values)
    codes = [codec.encode(space.sample(np.random.default_rng(seed))) for seed in range(5)]
    features = codec.features(codes)
    assert features.shape == (5, len(codec.columns))
    assert [tuple(row) for row in features.tolist()] == [tuple(codec.features([code])[0].tolist()) for code in codes]


def test_a_key_and_a_fingerprint_are_the_same_in_every_process(bind):
    space = bind("odd")
    again = BoundSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert space.codec.fingerprint == again.codec.fingerprint
    assert key_of(np.array([1, 2, 3])) == key_of(np.array([1, 2, 3], dtype=np.int32)) == "4636993d3e1da4e9d6b8f87b"
