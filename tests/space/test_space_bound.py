from __future__ import annotations

import itertools

import numpy as np
import peft
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.space.schema import SearchSpace
from glora_search.vocabulary import LayerPaths

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))


ARCHITECTURES = ["bert", "llama", "gpt2"]


LAYERS = {"bert": 12, "llama": 14, "gpt2": 8}


SPACES = [*itertools.product(SHIPPED, ARCHITECTURES), ("odd", "bert")]
"""Every shipped space on every architecture, and the one of tiny_fixtures.py that holds whatever a space may hold."""


def sample(space: BoundSpace, seed: int = 0) -> Genome:
    return space.sample(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("name", "architecture", "a_layer"),
    [
        ("glora", "bert", 36),
        ("glora-paper", "bert", 432),
        ("glora", "gpt2", 36),
        ("glora-paper", "gpt2", 432),
        ("glora", "llama", 4),
        ("glora-paper", "llama", 16),
        ("lora-ranks", "llama", 5),
        ("glora-ranks", "bert", 2**4 * 4),
        ("glora-ranks", "llama", 2**2 * 4),
    ],
)
def test_the_number_of_genomes_is_the_choices_a_layer_to_the_power_of_the_layers(name, architecture, a_layer, bind):
    assert bind(name, architecture).count() == a_layer ** LAYERS[architecture]


def test_different_genomes_of_the_same_function_have_the_same_key(bind):
    space = bind("glora-ranks")
    plain: Genome = {gene.name: "none" if gene.path != "r" else 1 for gene in space.genes}
    other = {gene.name: "none" if gene.path != "r" else 8 for gene in space.genes}
    assert plain != other
    assert space.key(plain) == space.key(other)
    assert space.key(plain) != space.key({**plain, space.genes[0].name: "vector"})


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda g, n: {**g, "elsewhere.A_B": "lora"}, ["elsewhere.A_B", "a gene of this space"]),
        (lambda g, n: {**g, n: "dense"}, ["'dense'", "'lora', 'vector', 'constant', 'none'", "{n}"]),
        (lambda g, n: {**g, n: None}, ["None", "'lora', 'vector', 'constant', 'none'", "{n}"]),
        (lambda g, n: {k: v for k, v in g.items() if k != n}, ["no value for {n}", "all 36 genes"]),
        (lambda g, n: {}, ["no value for {n}"]),
    ],
)
def test_a_genome_that_is_not_of_the_space_is_refused_with_gene_value_and_choices(change, parts, bind):
    space = bind("glora")
    name = space.genes[0].name
    genome = change(space.largest, name)
    for refusing in (space.check, space.to_config):
        with pytest.raises(UserError) as error:
            refusing(genome)
        for part in parts:
            assert part.format(n=name) in str(error.value)


def test_a_rank_gene_takes_no_bool(bind):
    space = bind("lora-ranks")
    name = space.genes[0].name
    with pytest.raises(UserError, match="got True"):
        space.check({**space.largest, name: True})


def test_settings_with_one_choice_are_no_genes(bind):
    space = bind("odd")
    assert {gene.path for gene in space.genes if "self.query" in gene.layer} == {"A", "C", "D_E", "r"}
    assert {gene.path for gene in space.genes if "self.value" in gene.layer} == {"A_B", "C", "D_E"}
    assert all(len(gene.choices) > 1 for gene in space.genes)


def test_rank_0_turns_a_low_rank_path_off(bind):
    space = bind("lora-ranks")
    genome = {**space.largest, space.genes[0].name: 0}
    assert space.layer_paths(genome)[space.layers[0].name] == LayerPaths()
    assert space.params(space.largest) - space.params(genome) == 8 * (16 + 16)


def test_a_bound_space_comes_back_from_plain_data(bind):
    space = bind("odd")
    data = yaml.safe_load(yaml.safe_dump(space.to_dict()))
    assert BoundSpace.from_dict(data) == space
    assert BoundSpace.from_dict(data).genes == space.genes


def lora_parameters(model: nn.Module, modules: list[str], rank: int) -> int:
    lora = get_peft_model(model, peft.LoraConfig(r=rank, target_modules=modules))
    return sum(p.numel() for name, p in lora.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "ranks"), [("glora-paper", [4]), ("glora-ranks", [1, 2, 4, 8]), ("lora-ranks", [1, 2, 4, 8])]
)
@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_the_uniform_lora_of_a_rank_costs_what_pefts_lora_of_that_rank_costs(
    name, ranks, architecture, bind, make_model
):
    space = bind(name, architecture)
    methods = space.uniform_methods()
    assert {label for label in methods if label.startswith("LoRA")} == {
        f"LoRA r={rank}{where}" for rank in ranks for where in ("", " on query+value")
    }
    everything = [layer.name for layer in space.layers]
    attention = [layer for layer in everything if layer.endswith(("query", "value", "q_proj", "v_proj", "c_attn"))]
    assert len(attention) == (2 if architecture == "gpt2" else 4)
    for rank in ranks:
        for label, modules in ((f"LoRA r={rank}", everything), (f"LoRA r={rank} on query+value", attention)):
            assert space.params(methods[label]) == lora_parameters(make_model(architecture), modules, rank)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ia3_and_bitfit_are_one_vector_a_layer(architecture, bind):
    space = bind("glora-paper", architecture)
    methods = space.uniform_methods()
    assert set(space.layer_paths(methods["(IA)3"]).values()) == {LayerPaths(A="vector")}
    assert ("BitFit" in methods) == (architecture != "llama")
    if "BitFit" in methods:
        assert set(space.layer_paths(methods["BitFit"]).values()) == {LayerPaths(E="vector")}


def test_where_a_path_is_tied_the_uniform_method_says_so_and_sets_the_pair(bind):
    methods = bind("glora").uniform_methods()
    assert set(methods) == {
        label + where
        for label in ("LoRA as A_B=lora r=4", "(IA)3 as A_B=vector", "BitFit as D_E=vector")
        for where in ("", " on query+value")
    }
    pairs = set(bind("glora").layer_paths(methods["LoRA as A_B=lora r=4"]).values())
    assert pairs == {LayerPaths(A="lora", B="lora", r=4)}


@pytest.mark.parametrize(("name", "architecture"), SPACES)
def test_every_uniform_method_is_a_genome_of_one_path_at_most(name, architecture, bind):
    space = bind(name, architecture)
    for genome in space.uniform_methods().values():
        space.check(genome)
        assert len(set(space.layer_paths(genome).values()) - {LayerPaths()}) == 1


def test_a_space_that_cannot_turn_its_other_paths_off_holds_no_uniform_method(bind):
    space = bind(SearchSpace(paths={"A": ["vector"], "B": ["lora", "none"], "E": ["vector"]}))
    assert space.uniform_methods() == {}


@pytest.mark.parametrize(("name", "architecture"), SPACES)
@given(seed=st.integers(0, 2**32))
def test_no_genome_is_smaller_than_the_smallest_or_larger_than_the_largest(name, architecture, seed, bind):
    space = bind(name, architecture)
    space.check(space.smallest)
    space.check(space.largest)
    assert space.params(space.smallest) <= space.params(sample(space, seed)) <= space.params(space.largest)


def test_smallest_and_largest_are_the_extremes_of_all_genomes():
    # Wide and narrow layers, where a vector is now cheaper and now dearer than a low-rank path.
    model = nn.Sequential(nn.Linear(40, 2), nn.Linear(2, 40, bias=False))
    space = SearchSpace(
        targets=["0", "1"],
        paths={"A": ["vector", "lora"], "B": ["constant", "vector"], "C": ["lora", "vector"], "E": ["vector"]},
        ranks=[1, 2],
    ).bind(model)
    choices = [[(gene.name, choice) for choice in gene.choices] for gene in space.genes]
    sizes = [space.params(dict(genome)) for genome in itertools.product(*choices)]
    assert len(sizes) == space.count() == 16 * 8
    assert space.params(space.smallest) == min(sizes)
    assert space.params(space.largest) == max(sizes)


@pytest.mark.parametrize("name", ["glora", "glora-ranks", "lora-ranks", "odd"])
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1), grow=st.booleans())
def test_a_resized_genome_meets_the_budget(name, seed, share, grow, bind):
    space, rng = bind(name), np.random.default_rng(seed)
    low, high = space.params(space.smallest), space.params(space.largest)
    budget = low + int(share * (high - low))
    start = space.sample(rng)
    before = dict(start)
    result = space.resize(start, budget, rng, grow=grow)
    space.check(result)
    assert start == before
    assert space.params(result) <= budget
    if not grow and space.params(start) <= budget:
        assert result == start


def test_a_genome_that_meets_the_budget_to_the_last_parameter_stays(bind):
    space = bind("glora-ranks")
    for seed in range(10):
        genome = sample(space, seed)
        assert space.resize(genome, space.params(genome), np.random.default_rng(seed)) == genome


@pytest.mark.parametrize("name", ["glora", "glora-paper"])
def test_growing_comes_close_to_the_budget(name, bind):
    space = bind(name)
    largest = space.layer_paths(space.largest)
    largest_layer = max(layer.params(largest[layer.name]) for layer in space.layers)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        result = space.resize(space.smallest, 2000, rng, grow=True)
        assert 2000 - largest_layer < space.params(result) <= 2000


def test_shrinking_changes_no_more_than_it_has_to(bind):
    space = bind("lora-ranks")
    changed = space.resize(space.largest, space.params(space.largest) - 1, np.random.default_rng(0))
    assert sum(changed[name] != space.largest[name] for name in changed) == 1


def test_a_budget_below_the_cheapest_subnet_is_refused(bind):
    space = bind(SearchSpace(paths={"E": ["vector", "constant"]}))
    assert space.params(space.smallest) == 13
    for refusing in (
        lambda: space.check_budget(12, key="search.max_params"),
        lambda: space.resize(space.smallest, 12, np.random.default_rng(0)),
    ):
        with pytest.raises(UserError, match=r"max_params: got 12; allowed: at least 13"):
            refusing()
    space.check_budget(13)
    space.check_budget(None)
