from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from glora_search import GLoraConfig, from_stock, to_lora, to_stock
from glora_search.compat import BaseTunerLayer
from glora_search.errors import UserError
from glora_search.tuners.glora import save_adapter
from glora_search.vocabulary import KINDS

TARGETS = ["query", "value", "intermediate.dense"]
KIND_PATTERN = {
    "value": {"A_B": "vector", "C": "none", "D_E": "vector", "r": 1},
    "layer.0.intermediate.dense": {"A": "none", "B": "constant", "C": "vector", "E": "none"},
    "layer.1.intermediate.dense": {"r": 5},
}
NONE = {"config_A_B": "none", "config_C": "none", "config_D_E": "none"}
B_ONLY = {
    "config_B": "lora",
    "path_pattern": {
        "value": {"B": "vector"},
        "layer.0.intermediate.dense": {"B": "constant"},
        "layer.1.intermediate.dense": {"r": 5},
        "layer.1.attention.self.query": {"B": "none"},
    },
}


def mixed(**options: Any) -> GLoraConfig:
    return GLoraConfig(**{"r": 2, "target_modules": TARGETS, "path_pattern": KIND_PATTERN, **options})


def b_only(**options: Any) -> GLoraConfig:
    return GLoraConfig(**{"r": 2, "target_modules": TARGETS, **NONE, **B_ONLY, **options})


def loaded(base: nn.Module, config: peft.PeftConfig, weights: dict[str, torch.Tensor]) -> nn.Module:
    """The converted adapter on a fresh base model; every weight finds its place and none is missing."""
    model = get_peft_model(base, config).eval()
    assert set(get_peft_model_state_dict(model, save_embedding_layers=False)) == set(weights)
    assert not set_peft_model_state_dict(model, weights).unexpected_keys
    return model


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_as_stock_glora_the_logits_are_the_same(task_type, make_model, randomize, logits):
    model = randomize(get_peft_model(make_model("bert").double(), mixed(task_type=task_type))).eval()
    config, weights = to_stock(model)
    assert type(config) is peft.GloraConfig
    assert (config.r, config.config_A_B, config.config_C, config.config_D_E) == (5, "lora", "lora", "vector")
    expected = logits(model)
    assert not torch.allclose(expected, logits(make_model("bert").double()), atol=1e-3)
    close(logits(loaded(make_model("bert").double(), config, weights)), expected)


def test_stock_glora_takes_no_larger_kinds_than_the_adapter_has(make_model, randomize, logits):
    options = {**NONE, "config_A": "constant", "config_E": "vector", "path_pattern": {}}
    model = randomize(get_peft_model(make_model("bert").double(), mixed(**options)))
    config, weights = to_stock(model)
    assert (config.r, config.config_A_B, config.config_C, config.config_D_E) == (1, "constant", "none", "vector")
    close(logits(loaded(make_model("bert").double(), config, weights)), logits(model))


def test_layers_without_a_bias_have_no_bias_paths_in_stock_glora_either(make_model, randomize, logits):
    targets = {"target_modules": ["q_proj", "down_proj"], "path_pattern": {"down_proj": {"A": "vector", "B": "none"}}}
    model = randomize(get_peft_model(make_model("llama").double(), mixed(**targets)))
    close(logits(loaded(make_model("llama").double(), *to_stock(model))), logits(model))


@settings(max_examples=15)
@given(data=st.data())
def test_any_paths_survive_the_way_to_stock_and_back(data, make_model, randomize, logits):
    def paths() -> dict[str, Any]:
        kinds = {path: data.draw(st.sampled_from(kinds), label=path) for path, kinds in KINDS.items()}
        return {**kinds, "r": data.draw(st.integers(1, 4))}

    pattern = {"query": paths(), "value": paths(), "intermediate.dense": paths()}
    model = randomize(get_peft_model(make_model("bert").double(), mixed(path_pattern=pattern)))
    stock = loaded(make_model("bert").double(), *to_stock(model))
    close(logits(stock), logits(model))
    again = loaded(make_model("bert").double(), *from_stock(stock))
    close(logits(again), logits(model))


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"config_A_B": "vector", "config_C": "vector", "config_D_E": "vector"},
        {"config_A_B": "none", "config_C": "none", "config_D_E": "vector"},
        {"config_A_B": "constant", "config_C": "lora", "config_D_E": "none"},
    ],
)
def test_from_stock_glora_the_logits_and_the_trainable_parameters_are_the_same(kinds, make_model, randomize, logits):
    stock = peft.GloraConfig(r=3, target_modules=TARGETS, modules_to_save=["classifier"], **kinds)
    model = randomize(get_peft_model(make_model("bert").double(), stock)).eval()
    ours = loaded(make_model("bert").double(), *from_stock(model))
    assert ours.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]
    close(logits(ours), logits(model))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_subnet_of_b_paths_is_a_lora(architecture, make_model, randomize, logits):
    gpt2 = {"target_modules": ["c_attn", "c_fc"], "path_pattern": {"c_fc": {"B": "vector"}}}
    model = randomize(
        get_peft_model(make_model(architecture).double(), b_only(**(gpt2 if architecture == "gpt2" else {})))
    )
    config, weights = to_lora(model)
    assert type(config) is peft.LoraConfig
    expected = logits(model)
    assert not torch.allclose(expected, logits(make_model(architecture).double()), atol=1e-3)
    lora = loaded(make_model(architecture).double(), config, weights)
    close(logits(lora), expected)
    close(logits(lora.merge_and_unload()), expected)


def test_as_a_lora_every_layer_keeps_its_own_rank_and_layers_without_a_path_are_left_out(make_model, randomize):
    config, _ = to_lora(randomize(get_peft_model(make_model("bert"), b_only())))
    prefix = "bert.encoder.layer."
    ranks = {name.replace("\\", ""): rank for name, rank in config.rank_pattern.items()}
    assert ranks == {
        f"{prefix}0.attention.self.query": 2,
        f"{prefix}0.attention.self.value": 1,
        f"{prefix}1.attention.self.value": 1,
        f"{prefix}0.intermediate.dense": 1,
        f"{prefix}1.intermediate.dense": 5,
    }
    assert config.target_modules == set(ranks)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_padded_lora_has_one_rank_and_a_scale_of_1_for_every_reader(architecture, make_model, randomize, logits):
    gpt2 = {"target_modules": ["c_attn", "c_fc"], "path_pattern": {"c_fc": {"B": "vector"}}}
    own = gpt2 if architecture == "gpt2" else {}
    model = randomize(get_peft_model(make_model(architecture).double(), b_only(**own)))
    config, weights = to_lora(model, pad=True)
    assert (config.rank_pattern, config.alpha_pattern) == ({}, {})
    assert config.target_modules == to_lora(model)[0].target_modules
    downs = {value.shape[0] for name, value in weights.items() if "lora_A" in name}
    # llama.cpp divides lora_alpha by each tensor's own rank, vLLM by r.
    assert downs == {config.r} == {config.lora_alpha}
    close(logits(loaded(make_model(architecture).double(), config, weights)), logits(model))


def test_other_paths_than_b_are_refused_as_a_lora_with_the_layer_and_the_paths(make_model, randomize):
    model = randomize(get_peft_model(make_model("bert"), b_only(config_E="vector")))
    with pytest.raises(UserError, match=r"query with B=lora\(r=2\) E=vector.*a LoRA cannot express E"):
        to_lora(model)
    empty = get_peft_model(make_model("bert"), GLoraConfig(target_modules=TARGETS, **NONE))
    with pytest.raises(UserError, match="without any path"):
        to_lora(empty)


def test_a_conv1d_is_refused_as_stock_glora(make_model):
    model = get_peft_model(make_model("gpt2"), mixed(target_modules=["c_attn"], path_pattern={}))
    with pytest.raises(UserError, match=r"h\.0\.attn\.c_attn, a Conv1D"):
        to_stock(model)


def test_what_is_not_such_an_adapter_is_refused(make_model):
    lora = get_peft_model(make_model("bert"), peft.LoraConfig(target_modules=TARGETS))
    for convert in (to_stock, from_stock, to_lora):
        with pytest.raises(UserError, match=r"LoraConfig.*allowed: an adapter of"):
            convert(lora)
        with pytest.raises(UserError, match="a PeftModel"):
            convert(make_model("bert"))
    ours = get_peft_model(make_model("bert"), mixed())
    with pytest.raises(UserError, match="adapter_name: got 'other'; allowed: one of 'default'"):
        to_stock(ours, "other")


def test_one_of_several_adapters_is_converted_by_its_name(make_model, randomize, logits):
    model = get_peft_model(make_model("bert").double(), mixed(), adapter_name="first")
    model.add_adapter("second", b_only())
    randomize(randomize(model, 1, "first"), 2, "second").eval()
    lora = loaded(make_model("bert").double(), *to_lora(model, "second"))
    stock = loaded(make_model("bert").double(), *to_stock(model))
    close(logits(stock), logits(model))
    model.set_adapter("second")
    close(logits(lora), logits(model))


def adapted_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.base_model.model.named_modules() if isinstance(module, BaseTunerLayer)]


def test_a_module_whose_name_ends_like_an_adapted_one_stays_as_it_is_in_both_formats(randomize):
    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))  # "0" and "1.0"

    config = GLoraConfig(target_modules="0", **{**NONE, "config_B": "lora"})
    ours = randomize(get_peft_model(model(), config))
    x = torch.randn(4, 3)
    for convert in (to_stock, to_lora):
        converted = loaded(model(), *convert(ours))
        assert adapted_layers(converted) == ["0"]
        torch.testing.assert_close(converted(x), ours(x))


class Named(nn.Module):
    """Layers ``a.q`` and ``a_q``: a dot, as a pattern, matches both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.ModuleDict({"q": nn.Linear(3, 3)})
        self.a_q, self.q = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(self.a_q(self.a["q"](x)))


def test_names_are_not_taken_for_patterns(randomize):
    pattern = {"a.q": {"r": 2}, "a_q": {"r": 3}}
    config = GLoraConfig(target_modules=["a.q", "a_q"], path_pattern=pattern, **{**NONE, "config_B": "lora"})
    model = randomize(get_peft_model(Named(), config))
    x = torch.randn(4, 3)
    torch.testing.assert_close(loaded(Named(), *to_lora(model))(x), model(x))


def test_a_layer_without_paths_whose_name_ends_like_one_with_paths_is_left_out_of_a_lora(randomize):
    pattern = {"a.q": {"B": "none"}}
    config = GLoraConfig(target_modules=["q"], path_pattern=pattern, **{**NONE, "config_B": "lora"})
    model = randomize(get_peft_model(Named(), config))
    x = torch.randn(4, 3)
    lora = loaded(Named(), *to_lora(model))
    assert adapted_layers(lora) == ["q"]
    torch.testing.assert_close(lora(x), model(x))


def test_trained_biases_and_the_head_come_along(make_model, randomize, logits):
    model = get_peft_model(make_model("bert").double(), b_only(bias="glora_only", task_type="SEQ_CLS"))
    randomize(model).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("base_layer.bias"):
            parameter.data += 1
    config, weights = to_lora(model)
    assert config.bias == "lora_only"
    close(logits(loaded(make_model("bert").double(), config, weights)), logits(model))
    config, weights = to_stock(model)
    close(logits(loaded(make_model("bert").double(), config, weights)), logits(model))


FRESH_PROCESS = """
import json, sys
import torch
from peft import PeftModel
from transformers import BertForSequenceClassification

base, *adapters = sys.argv[1:]
found = {}
for adapter in adapters:
    model = PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        found[adapter] = model(input_ids=torch.arange(12).reshape(2, 6)).logits.tolist()
assert not any(name.startswith("glora_search") for name in sys.modules)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_fresh_process_with_peft_alone_loads_both_formats(make_model, randomize, tmp_path):
    make_model("bert").save_pretrained(tmp_path / "base")
    expected = {}
    for name, config, convert in (("peft", mixed, to_stock), ("lora", b_only, to_lora)):
        model = randomize(get_peft_model(make_model("bert"), config(task_type="SEQ_CLS"))).eval()
        save_adapter(tmp_path / name, *convert(model))
        with torch.no_grad():
            expected[str(tmp_path / name)] = model(input_ids=torch.arange(12).reshape(2, 6)).logits
    command = [sys.executable, "-W", "error:.*adapter keys", "-c", FRESH_PROCESS, str(tmp_path / "base"), *expected]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "missing adapter keys" not in done.stderr
    for folder, found in json.loads(done.stdout.splitlines()[-1]).items():
        torch.testing.assert_close(torch.tensor(found), expected[folder], rtol=1e-5, atol=1e-5)
