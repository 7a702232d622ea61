"""Recipes: the shape, the defaults, and what is refused."""

from __future__ import annotations

import pytest
import yaml
from pydantic import ValidationError

from glora_search.errors import UserError
from glora_search.recipe.arguments import EVALUATED, OTHER_MACHINE
from glora_search.recipe.schema import Finals, Recipe
from glora_search.vocabulary import LR_FACTORS

BAD = {
    "unknown key": ("sede=1", ["sede", "did you mean seed"]),
    "unknown key of a section": ("search.trails=5", ["search.trails", "trials"]),
    "unknown sampler": ("search.sampler=annealing", ["search.sampler", "annealing", "evolution", "tpe"]),
    "a front by a sampler of one objective": (
        "search={objective: front, sampler: paper}",
        ["search", "sampler", "paper", "nsga2"],
    ),
    "racing to a front": ("search={objective: front, sampler: nsga2, racing: true}", ["racing", "false"]),
    "unknown score": ("search.score=f1", ["search.score", "f1", "loss", "metric"]),
    "unknown task": ("task.type=poetry", ["task.type", "poetry", "text-classification"]),
    "a prompt without a column": ("task.prompt=hello", ["task.prompt", "hello", "names of columns"]),
    "options of a built-in task": ("task.options={a: 1}", ["task.options", "'a': 1", "task of your own"]),
    "a saved data set without its folder": ("data={source: saved}", ["data.folder", "missing"]),
    "unknown source": ("data.source=ftp", ["data.source", "ftp", "csv", "hub"]),
    "a key of another source": ("data.text_column=x", ["data.text_column", "no such key"]),
    "unknown training argument": ("supernet.training.num_epochs=3", ["num_epochs", "num_train_epochs"]),
    "output_dir is the run folder's": ("supernet.training.output_dir=x", ["output_dir", "TrainingArguments"]),
    "a training argument of another type": ("retrain.training.learning_rate=fast", ["learning_rate", "fast"]),
    "a training argument of a bad value": ("retrain.training.eval_strategy=often", ["retrain.training", "often"]),
    "negative budget": ("search.max_params=-1", ["search.max_params", "-1"]),
    "no trials": ("search.trials=0", ["search.trials", "0"]),
    "unknown start": ("retrain.from=zero", ["retrain.from", "zero", "inherited", "scratch"]),
    "unknown baseline": ("baselines=[lora, magic]", ["baselines.1", "magic", "lora"]),
    "unknown sharing": ("supernet.sharing=tied", ["supernet.sharing", "tied", "separate", "nested"]),
    "a rate for an unknown kind": ("supernet.lr_factors.loar=2", ["supernet.lr_factors", "loar"]),
    "a rate that is none": ("supernet.lr_factors.lora=0", ["supernet.lr_factors.lora", "0"]),
    "an endless rate": ("supernet.lr_factors.lora=.inf", ["supernet.lr_factors.lora", "inf"]),
    "endless rates of finals": ("finals.rates=[.inf]", ["finals.rates", "inf"]),
    "no patience": ("supernet.patience=0", ["supernet.patience", "0"]),
    "what patience sets": (
        "supernet={patience: 2, training: {eval_strategy: steps}}",
        ["supernet.training.eval_strategy", "steps", "patience sets it"],
    ),
    "a name that is no folder": ("name=a/b", ["name", "a/b"]),
    "a scalar for a section": ("search=3", ["search", "3"]),
    "search on the test split": (
        "data={source: csv, train: a.csv, validation: b.csv, test: ./b.csv}",
        ["data.test", "b.csv", "another split than validation"],
    ),
    "search on the hub's test split": (
        "data={source: hub, name: x, validation: test, test: test}",
        ["data.test", "another split than validation"],
    ),
}


@pytest.mark.parametrize(("override", "words"), BAD.values(), ids=BAD.keys())
def test_a_wrong_value_is_refused_with_its_key_and_what_is_allowed(override, words):
    with pytest.raises(UserError) as error:
        Recipe.load("quickstart", [override])
    for word in words:
        assert word in str(error.value)


def test_every_wrong_key_of_a_file_is_reported_at_once():
    with pytest.raises(UserError) as error:
        Recipe.load("quickstart", ["sede=1", "search.trails=2"])
    assert "sede" in str(error.value)
    assert "trails" in str(error.value)


@pytest.mark.parametrize("text", ["nonsense", "=3", "name.sub=3"])
def test_an_override_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--set"):
        Recipe.load("quickstart", [text])


def test_a_missing_recipe_names_the_shipped_ones(tmp_path):
    with pytest.raises(UserError, match="quickstart"):
        Recipe.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text"])
def test_a_file_that_holds_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        Recipe.load(path)


def test_yaml_cannot_build_objects(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(UserError, match="not valid YAML"):
        Recipe.load(path)


def test_overrides_change_keys_and_keep_the_rest():
    recipe = Recipe.load("quickstart", ["search.trials=7", "supernet.training.learning_rate=2e-3"])
    assert recipe.search.trials == 7
    assert recipe.supernet.training["learning_rate"] == 0.002
    assert recipe.search.max_params == 60000


@pytest.mark.parametrize(
    ("given", "factors"), [({}, LR_FACTORS), ({"lr_factors": "auto"}, LR_FACTORS), ({"lr_factors": {}}, {})]
)
def test_rates_are_the_measured_ones_unless_others_are_given(given, factors):
    data = {"source": "csv", "train": "none.csv"}
    made = {"name": "made-up", "task": {"model": "none"}, "data": data, "space": "glora", "supernet": given}
    recipe = Recipe.model_validate(made)
    assert recipe.supernet.lr_factors == recipe.lr_factors(recipe.retrain) == factors


def test_the_dump_loads_as_the_same_recipe(tmp_path):
    recipe = Recipe.load("quickstart")
    path = tmp_path / "again.yaml"
    path.write_text(recipe.dump())
    assert Recipe.load(path) == recipe
    assert yaml.safe_load(recipe.dump())["retrain"]["from"] == "inherited"


@pytest.mark.parametrize("name", EVALUATED)
def test_what_a_race_sets_is_refused_in_its_section(name):
    with pytest.raises(ValidationError, match=rf"training\.{name}.*nothing: the race sets it"):
        Finals.model_validate({"training": {name: EVALUATED[name]}}, context=OTHER_MACHINE)
