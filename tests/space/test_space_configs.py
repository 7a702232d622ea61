from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from glora_search import GLoraConfig, GLoraLinear
from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.bound import BoundSpace
from glora_search.space.configs import paths_to_config
from glora_search.space.layers import Genome
from glora_search.space.schema import SearchSpace
from glora_search.vocabulary import LayerPaths

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))


ARCHITECTURES = ["bert", "llama", "gpt2"]


SPACES = [*itertools.product(SHIPPED, ARCHITECTURES), ("odd", "bert")]
"""Every shipped space on every architecture, and the one of conftest.py that holds whatever a space may hold."""


def sample(space: BoundSpace, seed: int = 0) -> Genome:
    return space.sample(np.random.default_rng(seed))


def built_paths(model: nn.Module) -> dict[str, LayerPaths]:
    return {
        name.removeprefix("base_model.model."): module.paths["default"]
        for name, module in model.named_modules()
        if isinstance(module, GLoraLinear)
    }


def adapter_parameters(model: nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if "glora_" in name)


@pytest.mark.parametrize(("name", "architecture"), SPACES)
def test_a_genomes_parameters_are_those_of_the_model_that_its_config_makes(name, architecture, bind, make_model):
    space = bind(name, architecture)
    for genome in (sample(space, 0), sample(space, 1), space.smallest, space.largest):
        model = get_peft_model(make_model(architecture), space.to_config(genome))
        assert adapter_parameters(model) == space.params(genome)
        wanted = {n: p for n, p in space.layer_paths(genome).items() if not p.empty}
        assert {n: p for n, p in built_paths(model).items() if not p.empty} == wanted


def test_what_is_left_alone_is_left_alone_even_if_its_name_ends_like_one_that_is_adapted():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    space = SearchSpace(targets=["0"], paths={"B": ["lora", "none"]}).bind(model)
    assert [layer.name for layer in space.layers] == ["0", "1.0"]
    genome: Genome = {"0.B": "lora", "1.0.B": "none"}
    assert space.from_config(space.to_config(genome)) == genome
    adapted = get_peft_model(model, space.to_config(genome))
    assert adapter_parameters(adapted) == space.params(genome) == 4 * (3 + 3)


@pytest.mark.parametrize(("name", "architecture"), SPACES)
@given(seed=st.integers(0, 2**32))
def test_a_genome_comes_back_from_its_config_as_the_same_subnet(name, architecture, seed, bind):
    space = bind(name, architecture)
    genome = sample(space, seed)
    back = space.from_config(space.to_config(genome))
    space.check(back)
    assert space.key(back) == space.key(genome)
    assert space.params(back) == space.params(genome)


def test_a_config_comes_back_after_peft_has_used_and_saved_it(bind, make_model, tmp_path):
    # Many targets: peft shortens the list of names when it injects them.
    space = bind("glora-paper")
    genome = sample(space)
    model = get_peft_model(make_model("bert"), space.to_config(genome))
    model.save_pretrained(tmp_path)
    assert space.key(space.from_config(GLoraConfig.from_pretrained(tmp_path))) == space.key(genome)


def test_a_uniform_config_by_hand_is_a_genome(bind):
    space = bind("glora")
    config = GLoraConfig(target_modules=["query", "value"], config_A_B="vector", config_C="none", config_D_E="none")
    paths = space.layer_paths(space.from_config(config))
    for name, own in paths.items():
        adapted = name.endswith(("query", "value"))
        assert own == (LayerPaths(A="vector", B="vector") if adapted else LayerPaths())


def test_a_config_that_the_space_does_not_hold_is_refused_by_the_layers_name(bind):
    with pytest.raises(UserError) as error:
        bind("glora").from_config(GLoraConfig(target_modules=["key"], r=3))
    assert "bert.encoder.layer.0.attention.self.key has A=lora(r=3)" in str(error.value)


def test_a_config_carries_further_options(bind):
    config = bind("glora").to_config(bind("glora").largest, task_type="SEQ_CLS", modules_to_save=["classifier"])
    assert (config.task_type, config.modules_to_save) == ("SEQ_CLS", ["classifier"])


def test_a_genome_of_nothing_is_a_config_that_adapts_nothing(bind, make_model):
    space = bind("lora-ranks")
    genome: Genome = {gene.name: 0 for gene in space.genes}
    assert space.params(genome) == 0
    model = get_peft_model(make_model("bert"), space.to_config(genome))
    assert adapter_parameters(model) == 0
    assert space.from_config(space.to_config(genome)) == genome


def test_paths_make_a_config_of_exactly_these_paths(make_model):
    wanted = {
        "bert.encoder.layer.0.attention.self.query": LayerPaths(A="lora", E="vector", r=3),
        "bert.encoder.layer.1.attention.self.query": LayerPaths(B="lora", r=5),
        "bert.encoder.layer.1.attention.self.key": LayerPaths(),
    }
    model = get_peft_model(make_model("bert"), paths_to_config(wanted))
    assert built_paths(model) == {name: paths for name, paths in wanted.items() if not paths.empty}
