"""``init``: the recipe that it writes."""

from __future__ import annotations

import re

import pytest
import yaml

from glora_search.recipe.schema import BaselineTraining, Finals, Recipe, Retrain, Search, Supernet
from glora_search.recipe.template import recipe_template


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_without_options_it_writes_a_recipe_that_loads(call, tmp_path):
    code, out, err = call("init")
    assert (code, err) == (0, "")
    assert "then run: glora-search run recipe.yaml" in out
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert recipe.name == "recipe"
    assert recipe.search.max_params == 60_000


def test_options_are_in_the_recipe(call, tmp_path, tiny_csv, tiny_model):
    options = {
        "--model": tiny_model,
        "--train": tiny_csv["train"],
        "--test": tiny_csv["test"],
        "--space": "lora-ranks",
        "--budget": 700,
        "--trials": 9,
    }
    code, out, _ = call("init", "my first: try.yaml", *(word for pair in options.items() for word in pair))
    assert code == 0
    assert "my first: try.yaml: written" in out
    recipe = Recipe.load(tmp_path / "my first: try.yaml")
    assert recipe.name == "my-first-try"
    assert recipe.task.model == str(tiny_model)
    assert (recipe.data.train, recipe.data.validation, recipe.data.test) == (tiny_csv["train"], None, tiny_csv["test"])
    assert (recipe.space, recipe.search.max_params, recipe.search.trials) == ("lora-ranks", 700, 9)


def test_the_columns_of_the_data_are_used(call, tmp_path):
    (tmp_path / "stars.csv").write_text('review,"how many: #"\nfine,5\n')
    assert call("init", "--train", "stars.csv", "--text-column", "review", "--label-column", "how many: #")[0] == 0
    assert Recipe.load("recipe.yaml").data.label_column == "how many: #"


def test_a_value_that_looks_like_a_comment_stays_as_it_is(call, tmp_path):
    (tmp_path / "my # file.csv").write_text("text,label\nfine,5\n")
    assert call("init", "--train", "my # file.csv")[0] == 0
    assert Recipe.load("recipe.yaml").data.train == "my # file.csv"
    assert "  train: 'my # file.csv'        # a csv file" in (tmp_path / "recipe.yaml").read_text()


def test_force_replaces_a_recipe(call, tmp_path):
    (tmp_path / "recipe.yaml").write_text("mine")
    assert call("init")[0] == 2
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert call("init", "--force")[0] == 0
    assert Recipe.load("recipe.yaml").name == "recipe"


def test_what_it_writes_runs(call, tmp_path, tiny_csv, tiny_model):
    given = ("--train", tiny_csv["train"], "--model", tiny_model, "--budget", 1000)
    assert call("init", *given)[0] == 0
    assert call("prepare", "recipe.yaml", "--set", "task.max_length=16")[0] == 0
    assert (tmp_path / "runs" / "recipe" / "space.yaml").is_file()


def test_every_key_that_is_commented_out_stands_with_its_default():
    text = recipe_template("x", {})
    plain = Recipe.model_validate(yaml.safe_load(text))
    everything = re.sub(r"^(\s*)#(\w+:)", r"\1\2", text, flags=re.MULTILINE)
    assert everything != text
    assert Recipe.model_validate(yaml.safe_load(everything)) == plain


@pytest.mark.parametrize("section", [Recipe, Supernet, Search, Retrain, Finals, BaselineTraining])
def test_every_key_of_a_section_is_in_it(section):
    keys = {field.alias or name for name, field in section.model_fields.items()}
    text = yaml.safe_load(re.sub(r"^(\s*)#( *\w+:)", r"\1\2", recipe_template("x", {}), flags=re.MULTILINE))
    parts = {Supernet: "supernet", Search: "search", Retrain: "retrain", Finals: "finals", BaselineTraining: "baseline"}
    part = parts.get(section)
    assert set(text if part is None else text[part]) == keys
