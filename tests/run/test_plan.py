"""The plan and the comparison of runs: what they count, refuse, and note."""

from __future__ import annotations

import copy
import json
import shutil

import pytest

from glora_search import Recipe, SearchSpace
from glora_search.cli.complete import recipes, run_folders
from glora_search.errors import UserError
from glora_search.run.compare import compare
from glora_search.run.folder import RunFolder
from glora_search.run.memory import sizes
from glora_search.run.plan import plan
from glora_search.tasks import make_task
from glora_search.training.uniform import uniform_methods


def test_the_largest_adapter_may_be_a_uniform_method(tiny_recipe):
    data = copy.deepcopy(tiny_recipe)
    data |= {"space": "lora-ranks", "finals": {"subnets": 1, "methods": ["lora"]}}
    data["search"] |= {"max_params": 5000}
    recipe = Recipe.model_validate(data)
    found = sizes(recipe, make_task(recipe))
    space = SearchSpace.load("lora-ranks").bind(make_task(recipe).model())
    (lora,) = uniform_methods(space, 5000, ["lora"])
    assert space.params(space.largest) < lora.params <= 5000
    assert found.parameters["largest adapter"] == lora.params


def test_a_search_that_calibrates_takes_the_memory_of_a_training(tiny_recipe):
    data = copy.deepcopy(tiny_recipe)
    data["search"]["calibration_steps"] = 3
    recipe = Recipe.model_validate(data)
    stages = sizes(recipe, make_task(recipe)).stages
    assert stages["search"].total == stages["train-supernet"].total


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"options": {"nope": 1}}, r"search\.options: got .*nope"),
        ({"max_params": 0}, "budget"),
        ({"max_params": 10}, "budget"),
    ],
)
def test_what_a_run_refuses_has_no_plan(tiny_recipe, tmp_path, search, said):
    data = copy.deepcopy(tiny_recipe) | {"finals": {}}
    data["search"] |= search
    with pytest.raises(UserError, match=said):
        plan(Recipe.model_validate(data), tmp_path / "plan", timed=False)


def test_perplexities_of_other_tokens_are_no_fair_comparison(copied, tmp_path):
    other = shutil.copytree(copied.folder, tmp_path / "other")
    for folder, length in ((copied.folder, 32), (other, 8)):
        text = (folder / "recipe.yaml").read_text().replace("max_length: 16", f"max_length: {length}")
        (folder / "recipe.yaml").write_text(text)
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps({**metrics, "metric": "perplexity"}))
    assert f"max_length: {length}" in text
    _, notes = compare([RunFolder(copied.folder), RunFolder(other)])
    assert any("task: max_length is 32" in note and "perplexities are of other tokens" in note for note in notes)


def test_the_shell_is_told_what_lies_in_this_folder(copied, monkeypatch):
    monkeypatch.chdir(copied.folder.parent)
    shutil.copy(copied.folder / "recipe.yaml", "one.yaml")
    assert f"./{copied.folder.name}" in run_folders("./")
    assert run_folders(f"./{copied.folder.name[:2]}") == [f"./{name}" for name in run_folders(copied.folder.name[:2])]
    assert recipes("./o") == ["./one.yaml"]
