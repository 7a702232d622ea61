"""A recipe, `find_adapter` and `search` ask for the same things by the same names, with the same defaults."""

from __future__ import annotations

import inspect

import pytest

from glora_search import Recipe, find_adapter, search

RECIPE = Recipe.model_validate(
    {"name": "made-up", "task": {"model": "none"}, "data": {"source": "csv", "train": "none.csv"}, "space": "glora"}
)
ELSEWHERE = {"budgets", "training", "options", "lr_factors", "sampling_options", "sampler", "objective", "racing"}
"""Training arguments stand for themselves, `find_adapter` passes on what only the search reads, and {} is None."""


@pytest.mark.parametrize(
    ("function", "section"), [(find_adapter, RECIPE.search), (find_adapter, RECIPE.supernet), (search, RECIPE.search)]
)
def test_the_defaults_are_those_of_the_recipe(function, section):
    own = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    keys = section.model_dump()
    if function is search:
        keys = {name: value for name, value in keys.items() if name not in ("batch_size", "calibration_steps", "fold")}
    assert set(keys) - set(own) <= ELSEWHERE
    assert {name: own[name] for name in keys if name in own and name not in ELSEWHERE} == {
        name: value for name, value in keys.items() if name in own and name not in ELSEWHERE
    }
