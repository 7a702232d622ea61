"""Genomes as codes: one code for each function, the space's own parameter counts, and moves between them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glora_search.space.bound import BoundSpace
from glora_search.space.codes import Codec, key_of

SPACES = ["odd", "glora", "glora-paper", "glora-ranks", "lora-ranks"]


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


@pytest.mark.parametrize("name", SPACES)
def test_neighbours_differ_in_one_gene_and_in_what_they_compute(bind, name):
    for table in Codec(bind(name)).tables:
        for index, neighbours in enumerate(table.neighbours):
            assert index not in neighbours
            own = table.values[index]
            changed = [{**own, path: value} for path in own for value in {v[path] for v in table.values}]
            assert set(neighbours) <= {table.index(values) for values in changed}


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
