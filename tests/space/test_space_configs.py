from __future__ import annotations

import itertools

import numpy as np
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model, set_peft_model_state_dict
from torch import nn

from glora_search import GLoraConfig, GLoraLinear, SupernetConfig, to_lora, to_stock
from glora_search.compat import BaseTunerLayer
from glora_search.errors import UserError
from glora_search.files.shipped import shipped_folder
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.space.schema import SearchSpace
from glora_search.tuners.glora.config import paths_to_config
from glora_search.vocabulary import LayerPaths

SHIPPED = sorted(file.stem for file in shipped_folder("search_spaces").glob("*.yaml"))


ARCHITECTURES = ["bert", "llama", "gpt2"]


SPACES = [*itertools.product(SHIPPED, ARCHITECTURES), ("odd", "bert")]
"""Every shipped space on every architecture, and the one of tiny_fixtures.py that holds whatever a space may hold."""


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


def nested() -> nn.Module:
    """Layers ``0`` and ``1.0``: peft takes the name of the first for the end of the second's too."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))


OUTER = SearchSpace(targets=["0"], exclude=["1.0"], paths={"B": ["lora", "vector", "none"]}, ranks=[2])
"""A space that counts the outer layer alone."""


def tuned(model: nn.Module) -> list[str]:
    """The layers with an adapter."""
    return [name for name, module in model.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)]


@pytest.mark.parametrize("targets", [["0"], "0"])
def test_a_layer_that_the_space_does_not_count_is_never_adapted(targets, tmp_path):
    space = OUTER.model_copy(update={"targets": targets, "exclude": ["1.0"] if isinstance(targets, list) else None})
    bound = space.bind(nested())
    assert [layer.name for layer in bound.layers] == ["0"]
    config = bound.to_config(bound.largest)
    config.save_pretrained(tmp_path)
    for used in (config, GLoraConfig.from_pretrained(tmp_path)):
        model = get_peft_model(nested(), used)
        assert tuned(model) == ["0"]
        assert adapter_parameters(model) == bound.params(bound.largest)
    assert bound.from_config(GLoraConfig.from_pretrained(tmp_path)) == bound.largest


def test_a_layer_that_the_space_does_not_count_is_not_adapted_in_a_supernet_and_what_is_exported_of_it(randomize):
    x = torch.randn(4, 3)
    supernet = randomize(get_peft_model(nested(), SupernetConfig(space=OUTER)))
    assert tuned(supernet) == supernet.targeted_module_names == ["0"]
    for genome in ({"0.B": "lora"}, {"0.B": "vector"}):
        supernet.activate(genome)
        config, weights = supernet.subnet_config(genome), supernet.subnet_state_dict(genome)
        subnet = get_peft_model(nested(), config)
        assert not set_peft_model_state_dict(subnet, weights).unexpected_keys
        for own, weights in (to_stock(subnet), to_lora(subnet)):
            model = get_peft_model(nested(), own)
            assert not set_peft_model_state_dict(model, weights).unexpected_keys
            assert tuned(model) == tuned(subnet) == ["0"]
            torch.testing.assert_close(model(x), supernet(x))


def test_a_bound_space_names_its_layers_for_any_config_of_peft():
    space = SearchSpace(targets=["0"], paths={"B": ["lora", "none"]}).bind(nested())
    assert [layer.name for layer in space.layers] == ["0", "1.0"]
    assert (space.targets(), space.targets(["1.0"]), space.targets(["0"])) == (["0", "1.0"], ["1.0"], "0")
    for names in (["0"], ["1.0"], ["0", "1.0"]):
        assert tuned(get_peft_model(nested(), peft.LoraConfig(target_modules=space.targets(names)))) == names


def test_a_bound_space_that_was_saved_without_its_namesakes_still_loads():
    space = OUTER.bind(nested())
    assert space.namesakes == ["1.0"]
    data = space.to_dict()
    assert BoundSpace.from_dict(data) == space
    del data["namesakes"]
    assert BoundSpace.from_dict(data).layers == space.layers
    assert get_peft_model(nested(), SupernetConfig(space=BoundSpace.from_dict(data))).space == space


def test_what_is_left_alone_is_left_alone_even_if_its_name_ends_like_one_that_is_adapted():
    space = SearchSpace(targets=["0"], paths={"B": ["lora", "none"]}).bind(nested())
    genome: Genome = {"0.B": "lora", "1.0.B": "none"}
    assert space.from_config(space.to_config(genome)) == genome
    adapted = get_peft_model(nested(), space.to_config(genome))
    assert tuned(adapted) == ["0"]
    assert adapter_parameters(adapted) == space.params(genome) == 4 * (3 + 3)


@pytest.mark.parametrize(("name", "architecture"), SPACES)
def test_where_no_name_ends_like_anothers_a_config_lists_the_layers_names(name, architecture, bind):
    space = bind(name, architecture)
    assert space.namesakes == []
    assert space.to_config(space.largest).target_modules == {layer.name for layer in space.layers}


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


def test_a_config_with_targets_that_peft_would_choose_is_refused(bind):
    with pytest.raises(UserError, match=r"^config\.target_modules: got None; allowed: names of layers, or all-linear"):
        bind("glora").from_config(GLoraConfig(r=4))
