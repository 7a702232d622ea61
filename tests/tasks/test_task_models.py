"""A task's base model: its head, and how long an input it takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from glora_search.errors import UserError
from glora_search.space.schema import SearchSpace
from glora_search.tasks.models import longest_input


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
