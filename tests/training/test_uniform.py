"""Uniform methods at the largest size within a budget: what they train, and how much of it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from glora_search import SearchSpace
from glora_search.adapters.load import adapter_params
from glora_search.training.uniform import METHODS, uniform_methods

KINDS = {
    "lora": {"lora_A", "lora_B"},
    "ia3": {"glora_A"},
    "bitfit": {"glora_E"},
    "hira": {"glora_A"},
    "lora+vectors": {"glora_A", "glora_B", "glora_E"},
}


def made(name, model, budget, space="glora"):
    (method,) = uniform_methods(SearchSpace.load(space).bind(model), budget, [name])
    return method, get_peft_model(model, method.config("SEQ_CLS", []))


@pytest.mark.parametrize("budget", [None, 4000])
@pytest.mark.parametrize("space", ["glora", "glora-paper"])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_as_many_parameters_as_it_says_whatever_the_space_holds(make_model, name, budget, space):
    method, model = made(name, make_model("bert"), budget, space)
    assert adapter_params(model) == method.params
    assert budget is None or method.params <= budget
    trained = {part for n, p in model.named_parameters() if p.requires_grad for part in n.split(".")}
    assert {part for part in trained if part.startswith(("glora_", "lora_"))} == KINDS[name]


@pytest.mark.parametrize("name", ["lora", "hira", "lora+vectors"])
def test_one_rank_more_would_not_fit(make_model, name):
    space = SearchSpace.load("glora").bind(make_model("bert"))
    rank = sum(layer.in_features + layer.out_features for layer in space.layers)
    vectors = 2 * sum(layer.out_features for layer in space.layers) if name == "lora+vectors" else 0
    for budget, wanted in ((vectors + 2 * rank, 2), (vectors + 2 * rank - 1, 1), (vectors + rank, 1)):
        (method,) = uniform_methods(space, budget, [name])
        assert method.params == vectors + wanted * rank
        assert f"r={wanted}" in method.name


def test_what_does_not_fit_is_left_out(make_model):
    space = SearchSpace.load("glora").bind(make_model("bert"))
    assert uniform_methods(space, 1, list(METHODS)) == []
    rank = sum(layer.in_features + layer.out_features for layer in space.layers)
    names = [method.name for method in uniform_methods(space, rank, ["lora", "lora+vectors", "lora"])]
    assert names == ["LoRA r=1"]


def test_without_a_bias_there_is_no_bitfit():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 3, bias=False))
    space = SearchSpace.load("glora").bind(model)
    assert uniform_methods(space, None, ["bitfit"]) == []
    (vectors,) = uniform_methods(space, None, ["lora+vectors"])
    assert vectors.params == 9 + 8 * (10 + 9)


def test_lora_is_pefts_own(make_model):
    method, _ = made("lora", make_model("bert"), 4000)
    assert isinstance(method.config("SEQ_CLS", []), LoraConfig)
    assert method.rated
