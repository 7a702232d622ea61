"""The baseline that a search is compared with: its size, and how long it trains."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from torch import nn

from glora_search import Recipe, SearchSpace, lora_within
from glora_search.training.baselines import baseline_settings

ROWS = 100


def settings(supernet, retrain, baseline=None):
    batch = {"per_device_train_batch_size": 10}
    recipe = {
        "name": "made-up",
        "task": {"model": "none"},
        "data": {"source": "csv", "train": "none.csv"},
        "space": "glora",
        "supernet": {"training": {**batch, **supernet}},
        "retrain": {"training": {**batch, **retrain}},
        "baseline": {"training": baseline or {}},
    }
    return baseline_settings(Recipe.model_validate(recipe), ROWS)


def test_it_trains_for_the_epochs_of_supernet_and_retraining_together():
    found = settings({"num_train_epochs": 4, "learning_rate": 0.5}, {"num_train_epochs": 2})
    assert found == {"per_device_train_batch_size": 10, "num_train_epochs": 6, "learning_rate": 0.5}


def test_its_learning_rate_is_that_of_retraining_where_it_has_none_of_its_own():
    both = {"learning_rate": 0.4}, {"learning_rate": 0.1}
    assert settings(*both)["learning_rate"] == 0.1
    assert settings(*both, {"learning_rate": 0.2})["learning_rate"] == 0.2
    assert settings(both[0], {})["learning_rate"] == 0.4


@pytest.mark.parametrize(
    ("supernet", "retrain", "steps"),
    [
        ({"max_steps": 50}, {"num_train_epochs": 2}, 50 + 20),
        ({"max_steps": 50}, {}, 50 + 30),  # the default is 3 epochs
        ({"num_train_epochs": 4}, {"max_steps": 7}, 40 + 7),
        ({"max_steps": 50}, {"max_steps": 7}, 57),
        ({"max_steps": 50}, {"num_train_epochs": 2, "gradient_accumulation_steps": 5}, 50 + 4),
    ],
)
def test_where_steps_are_given_for_one_of_the_two_it_still_gets_the_share_of_both(supernet, retrain, steps):
    assert settings(supernet, retrain)["max_steps"] == steps


def test_a_length_of_its_own_comes_first():
    assert settings({"max_steps": 50}, {}, {"num_train_epochs": 9})["max_steps"] == -1
    assert settings({"num_train_epochs": 5}, {}, {"max_steps": 9})["max_steps"] == 9


def test_lora_adapts_exactly_the_layers_of_the_space():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)))
    space = SearchSpace(targets=["0"], exclude=["1.0"], paths={"B": ["lora", "none"]}).bind(model)
    adapted = get_peft_model(model, lora_within(space, 2 * (3 + 3), None))
    names = [name for name, _ in adapted.named_parameters() if "lora_A" in name]
    assert len(names) == 1
    assert ".0.lora_A" in names[0]
    assert ".1.0." not in names[0]


def test_lora_is_the_largest_rank_that_fits_or_on_query_and_value_or_none(bind):
    space = bind("glora")
    cost = sum(layer.in_features + layer.out_features for layer in space.layers)
    assert lora_within(space, 2 * cost + 1, None).r == 2
    attention = lora_within(space, cost - 1, None)
    assert attention.target_modules
    assert all(name.endswith(("query", "value")) for name in attention.target_modules)
    assert lora_within(space, 1, None) is None
    assert lora_within(space, None, None).r == 8
