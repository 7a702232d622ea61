"""What YAML makes of values: numbers, yes and no, empty sections, and paths."""

from __future__ import annotations

import pytest
import yaml

from glora_search.errors import UserError
from glora_search.files.text import dump_yaml, parse_yaml
from glora_search.recipe.schema import Recipe
from glora_search.recipe.template import recipe_template


@pytest.fixture
def loaded(tiny_recipe, tmp_path):
    """``loaded(*overrides, more="")``: the recipe of a file, with lines added to it."""

    def load(*overrides, more=""):
        data = {key: value for key, value in tiny_recipe.items() if not more.startswith(f"{key}:")}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data) + more)
        return Recipe.load(tmp_path / "recipe.yaml", overrides)

    return load


def test_a_number_needs_no_point_before_its_exponent(loaded):
    recipe = loaded(
        "supernet.lr_factors={vector: 5e-1}", "search.max_params=6e2", "supernet.training.learning_rate=1e-3"
    )
    assert recipe.supernet.lr_factors == {"vector": 0.5}
    assert recipe.search.max_params == 600
    assert recipe.supernet.training["learning_rate"] == 1e-3


@pytest.mark.parametrize("value", ["1e3", "-2E+5", "1e-05", "e3", "1e", "1_0e3", 1e-05, 1e300])
def test_a_text_that_looks_like_a_number_stays_one(value):
    assert parse_yaml(dump_yaml({"a": [value]})) == {"a": [value]}
    assert type(parse_yaml(dump_yaml({"a": value}))["a"]) is type(value)


def test_so_it_does_in_the_recipe_that_init_writes():
    written = recipe_template("first", {}, data={"source": "csv", "train": "1e3", "text_column": "2e5"})
    assert parse_yaml(written)["data"] == {"source": "csv", "train": "1e3", "text_column": "2e5"}


@pytest.mark.parametrize(
    "override",
    [
        "search.trials=yes",
        "seed=no",
        "search.max_params=true",
        "data.max_train_rows=on",
        "data.test_fraction=yes",
        "supernet.training.learning_rate=yes",
        "supernet.training.num_train_epochs=on",
    ],
)
def test_yes_and_no_are_no_numbers(loaded, override):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"{key}: got (True|False); allowed: a number; YAML reads yes"):
        loaded(override)


def test_yes_and_no_are_what_they_are_where_they_are_asked_for(loaded):
    recipe = loaded("search.racing=yes", "supernet.training.gradient_checkpointing=no")
    assert recipe.search.racing is True
    assert recipe.supernet.training["gradient_checkpointing"] is False


def test_a_section_of_finals_without_a_key_is_refused_and_null_is_none(loaded):
    for empty in ("finals:\n", "finals:   # all defaults\n  #subnets: 2\n"):
        with pytest.raises(UserError, match=r"finals: got None; allowed: a mapping.*\{\} has all defaults"):
            loaded(more=empty)
    assert loaded(more="finals: null\n").finals is None
    assert loaded(more="finals: {}\n").finals is not None


def test_a_key_that_is_there_twice_is_refused_in_an_override_too(loaded):
    with pytest.raises(UserError, match=r"--set finals: not valid YAML.*the key subnets is there twice"):
        loaded("finals={subnets: 1, subnets: 2}")


def test_the_home_folder_is_put_into_paths(loaded, tiny_csv, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("{}")
    recipe = loaded("data.train=~/train.csv", "space=~/my.yaml")
    assert (recipe.data.train, recipe.space) == (str(tmp_path / "train.csv"), str(tmp_path / "my.yaml"))
    with pytest.raises(UserError, match="splits must not overlap"):
        loaded("data.train=~/train.csv", f"data.test={tmp_path}/train.csv")
