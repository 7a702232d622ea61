from __future__ import annotations

import pytest
import torch
from glora_models import ARCHITECTURES, close, config, glora_layers
from peft import get_peft_model, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from glora_search import GLoraConfig
from glora_search.errors import UserError
from glora_search.vocabulary import LayerPaths


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_printed_count_is_the_sum_over_the_layers_paths(architecture, make_model, capsys):
    model = get_peft_model(make_model(architecture), config(architecture))
    layers = glora_layers(model)
    expected = sum(layer.paths["default"].params(layer.in_features, layer.out_features) for layer in layers.values())
    model.print_trainable_parameters()
    assert f"trainable params: {expected:,} ||" in capsys.readouterr().out
    assert model.get_nb_trainable_parameters()[0] == expected
    assert all("glora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_every_layer_gets_the_paths_of_its_pattern(make_model):
    model = get_peft_model(make_model("bert"), config())
    paths = {name: layer.paths["default"] for name, layer in glora_layers(model).items()}
    assert len(paths) == 6
    full = LayerPaths("lora", "lora", "lora", "constant", "constant", r=2)
    for index in (0, 1):
        prefix = f"bert.encoder.layer.{index}."
        assert paths[prefix + "attention.self.query"] == full
        assert paths[prefix + "attention.self.value"] == LayerPaths(
            "vector", "vector", "lora", "constant", "constant", r=1
        )
    assert paths["bert.encoder.layer.0.intermediate.dense"] == full
    assert paths["bert.encoder.layer.1.intermediate.dense"] == LayerPaths(
        "none", "lora", "lora", "vector", "vector", r=2
    )


def test_a_pattern_that_holds_for_no_layer_is_warned_of(make_model, recwarn):
    known = {"query": {"A": "vector"}, "bert.encoder.layer.0.attention.self.value": {"A": "vector"}}
    model = get_peft_model(make_model("bert"), config(path_pattern=known))
    assert not [one for one in recwarn if "path_pattern" in str(one.message)]
    typo = {"query": {"A": "vector"}, "valeu": {"A": "vector"}}
    with pytest.warns(UserWarning, match=r"path_pattern: valeu hold for none of the adapted layers, e\.g\. bert\."):
        model.add_adapter("other", config(path_pattern=typo))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_new_adapter_changes_nothing_unless_its_weights_are_drawn(architecture, make_model, logits):
    expected = logits(make_model(architecture))
    started = get_peft_model(make_model(architecture), config(architecture))
    close(logits(started), expected, 1e-6)
    drawn = get_peft_model(make_model(architecture), config(architecture, init_weights=False))
    assert not torch.allclose(logits(drawn), expected, atol=1e-6)


def test_another_type_of_layer_is_refused_by_the_modules_name(make_model):
    with pytest.raises(UserError) as error:
        get_peft_model(make_model("bert"), config(target_modules=["word_embeddings"], path_pattern={}))
    assert "bert.embeddings.word_embeddings" in str(error.value)
    assert "'Embedding'" in str(error.value)


def test_all_linear_adapts_every_linear_layer_but_the_head(make_model):
    model = get_peft_model(make_model("bert"), config(target_modules="all-linear", task_type="SEQ_CLS"))
    wanted = {name for name, m in make_model("bert").named_modules() if isinstance(m, nn.Linear)} - {"classifier"}
    assert set(glora_layers(model)) == wanted
    model = get_peft_model(make_model("gpt2"), config("gpt2", target_modules="all-linear"))
    assert set(glora_layers(model)) == {n for n, m in make_model("gpt2").named_modules() if isinstance(m, Conv1D)}


def test_excluded_modules_stay_as_they_are(make_model):
    model = get_peft_model(make_model("bert"), config(exclude_modules=["layer.0.attention.self.query", "value"]))
    assert set(glora_layers(model)) == {
        "bert.encoder.layer.1.attention.self.query",
        "bert.encoder.layer.0.intermediate.dense",
        "bert.encoder.layer.1.intermediate.dense",
    }


@pytest.mark.parametrize("pattern", [None, "layer", ["layer"]])
@pytest.mark.parametrize(("indexes", "found"), [([1], {1}), (1, {1}), (0, {0}), ([0, 1], {0, 1})])
def test_layers_to_transform_picks_layers_by_index(pattern, indexes, found, make_model):
    model = get_peft_model(make_model("bert"), config(layers_to_transform=indexes, layers_pattern=pattern))
    assert {int(name.split(".")[3]) for name in glora_layers(model)} == found
    assert len(glora_layers(model)) == 3 * len(found)


def test_without_target_modules_the_architectures_default_is_taken(make_model):
    model = get_peft_model(make_model("llama"), GLoraConfig(task_type="CAUSAL_LM"))
    assert {name.rpartition(".")[2] for name in glora_layers(model)} == {"q_proj", "v_proj"}


def test_injected_into_a_model_it_computes_the_same_as_a_peft_model(make_model, randomize, logits):
    peft_model = randomize(get_peft_model(make_model("bert"), config()))
    injected = inject_adapter_in_model(config(), make_model("bert"))
    assert type(injected) is type(make_model("bert"))
    keys = {name.removeprefix("base_model.model."): v for name, v in peft_model.state_dict().items()}
    injected.load_state_dict(keys)
    assert torch.equal(logits(injected), logits(peft_model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_without_a_bias_have_no_bias_paths(architecture, make_model):
    model = get_peft_model(make_model(architecture), config(architecture))
    for name, layer in glora_layers(model).items():
        has_bias = getattr(make_model(architecture).get_submodule(name), "bias", None) is not None
        if not has_bias:
            assert set(layer.path_tensors("default")) <= {"A", "B"}
    assert any(layer.paths["default"].C != "none" for layer in glora_layers(model).values()) == (
        architecture != "llama"
    )
