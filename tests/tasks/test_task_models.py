"""A task's base model: its head, and how long an input it takes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch

from glora_search.errors import UserError
from glora_search.space.schema import SearchSpace
from glora_search.tasks.models import longest_input, resolve_model


def test_a_head_of_another_number_of_classes_is_trained_and_not_adapted_whatever_its_name(task, make):
    made = task("bart", "text-classification", make.rows())
    model = made.model()
    assert model.classification_head.out_proj.out_features == 2
    assert made.modules_to_save == ["classification_head"]
    space = SearchSpace(targets=["fc1", "dense", "out_proj"], paths={"B": ["lora"]}, ranks=[2])
    names = [layer.name for layer in space.bind(model, made.modules_to_save).layers]
    assert "model.encoder.layers.0.fc1" in names
    assert not any("classification_head" in name for name in names)


@pytest.mark.parametrize(("architecture", "saved"), [("bert", []), ("distilbert", ["pre_classifier"]), ("roberta", [])])
def test_what_peft_adds_itself_is_not_named_again(task, make, architecture, saved):
    made = task(architecture, "text-classification", make.rows())
    made.model()
    assert made.modules_to_save == saved


@pytest.mark.parametrize(("architecture", "positions", "longest"), [("roberta", 40, 38), ("bert", 32, 32)])
def test_the_longest_input_is_what_the_positions_hold(task, make, architecture, positions, longest):
    made = task(architecture, "text-classification", make.rows(), max_length=longest)
    ids = torch.full((1, longest), 5)
    assert made.model()(input_ids=ids).logits.shape == (1, 2)
    with pytest.raises(UserError, match=rf"task\.max_length: got {longest + 1}; allowed: at most {longest}"):
        task(architecture, "text-classification", make.rows(), max_length=longest + 1)


def test_a_model_that_says_minus_one_has_no_longest_input():
    config = SimpleNamespace(max_position_embeddings=-1, model_type="xlnet")
    assert longest_input(SimpleNamespace(model_max_length=int(1e30)), config) == int(1e30)
    assert longest_input(SimpleNamespace(model_max_length=None), config) is None


def test_an_adapter_on_the_hub_is_refused_as_one_in_a_folder_is(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve_model("owner/adapter") == "owner/adapter"  # offline, what is not in the cache cannot be told
    kept = tmp_path / "models--owner--adapter"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a1" * 20)
    (kept / "snapshots" / ("a1" * 20)).mkdir(parents=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": "roberta-base"}
    (kept / "snapshots" / ("a1" * 20) / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'owner/adapter'; allowed: a model; this is a LORA adapter of roberta-base"):
        resolve_model("owner/adapter")


@pytest.mark.parametrize("name", ["a b/c", "a/b/c", "https://huggingface.co/owner/model"])
def test_what_cannot_be_a_name_on_the_hub_is_left_to_transformers(name):
    assert resolve_model(name) == name
