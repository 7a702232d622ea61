"""A recipe whose later sections change: the run goes on, and what is stale is named and done again."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import yaml

from glora_search import Recipe, Run
from glora_search.errors import UserError
from glora_search.run.changes import stages_of
from glora_search.run.search import assist
from glora_search.run.stages import STAGES

DONE = [name for name in STAGES if name not in ("finals", "refitted")]


def with_keys(data, **keys):
    """A recipe, as data, with ``section__key`` set."""
    made = copy.deepcopy(data)
    for key, value in keys.items():
        *parents, last = key.split("__")
        place = made
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return made


def left(run):
    return [name for name in STAGES if run.view.done(name) is not None]


def test_a_section_that_the_run_leaves_out_may_change_and_removes_nothing(raced, tmp_path):
    folder = shutil.copytree(raced[0].folder, tmp_path / "run")
    recipe = raced[0].context.recipe.model_copy(deep=True)
    recipe.retrain.training["learning_rate"] = 1e-4
    run = Run.create(recipe, folder)
    assert left(run) == left(raced[0])
    assert run.view.recipe["retrain"]["training"]["learning_rate"] == 1e-4


def test_baselines_are_as_long_as_retraining_is():
    assert stages_of("retrain.training.dataloader_drop_last") == ["retrained", "baselines"]


@pytest.mark.parametrize(
    ("keys", "stay"),
    [
        ({"search__max_params": 800}, ["supernet"]),
        ({"search__sampler": "random", "search__options": {}}, ["supernet", "baselines"]),
        ({"retrain__training__weight_decay": 1e-4}, ["supernet", "search", "best", "baselines"]),
        ({"retrain__training__learning_rate": 1e-4}, ["supernet", "search", "best"]),
        ({"retrain__training__num_train_epochs": 2}, ["supernet", "search", "best"]),
        ({"baselines": []}, ["supernet", "search", "best", "retrained", "merged"]),
        ({"baseline__training__seed": 5}, ["supernet", "search", "best", "retrained", "merged"]),
        ({"finals": {"subnets": 1}}, ["supernet", "search", "best", "retrained", "baselines"]),
        ({"search__batch_size": 8}, DONE),
        ({"search__trials": 5}, DONE),
    ],
    ids=str,
)
def test_a_later_section_may_change_and_makes_stale_what_was_made_from_it(copied, tiny_recipe, keys, stay, capsys):
    run = Run.create(Recipe.model_validate(with_keys(tiny_recipe, **keys)), copied.folder)
    assert left(run) == stay
    out = capsys.readouterr().out
    for name in set(DONE) - set(stay):
        assert STAGES[name].shown in out
    for key in keys:
        assert key.replace("__", ".") in out
    assert Run.create(run.context.recipe, copied.folder).view.recipe == run.view.recipe


def test_more_trials_go_on_from_those_that_are_there(copied, tiny_recipe):
    before = (copied.folder / "search" / "journal.log").read_bytes()
    weights = copied.view.weights()
    run = Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__trials=15)), copied.folder)
    assert left(run) == ["supernet", "baselines"]
    assert run.do("search")["trials"] == 15
    assert (copied.folder / "search" / "journal.log").read_bytes().startswith(before)
    assert run.view.weights() == weights
    whole = Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__trials=15)), copied.folder / "whole")
    whole.do("supernet")
    assert whole.do("search")["best"] == run.view.result("search")["best"]


def test_a_search_that_has_found_no_further_subnet_does_not_go_on(copied, tiny_recipe, capsys):
    small = with_keys(tiny_recipe, search__max_params=0)
    run = Run.create(Recipe.model_validate(small), copied.folder)
    assert run.do("search")["trials"] == 1
    assert "note: no further subnet within the budget: 1 of 12 trials" in capsys.readouterr().out
    run.do("best")
    run = Run.create(Recipe.model_validate(with_keys(small, search__trials=15)), copied.folder)
    assert left(run) == ["supernet", "search", "best"]
    assert run.view.recipe["search"]["trials"] == 15


def test_a_search_in_another_storage_goes_on_there_alone(copied, tiny_recipe):
    copied.forget("search")
    storage = str(copied.folder / "elsewhere.log")
    copied.do("search", storage=storage)
    copied.do("best")
    more = Recipe.model_validate(with_keys(tiny_recipe, search__trials=15))
    with pytest.raises(UserError, match=r"are in the storage that --storage named.*--storage STORAGE"):
        Run.create(more, copied.folder)
    assert left(Run(copied.folder)) == ["supernet", "search", "best", "baselines"]
    run = Run.create(more, copied.folder, storage=storage)
    for work in (lambda: run.do("search"), lambda: assist(copied.folder)):
        with pytest.raises(UserError, match="are in the storage that --storage named"):
            work()
    assert run.do("search", storage=storage)["trials"] == 15
    assert not (copied.folder / "search" / "journal.log").exists()


def test_another_budget_searches_again_on_the_same_supernet(copied, tiny_recipe):
    old = copied.view.result("supernet"), copied.view.shared_name()
    run = Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__max_params=300)), copied.folder)
    metrics = run.all_stages()
    assert run.view.result("supernet") == old[0]
    assert metrics["budget"] == 300
    assert metrics["final"]["params"] <= 300
    assert run.view.shared_name() != old[1]


def test_larger_subnets_than_the_supernets_are_noted(copied, tiny_recipe):
    run = Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__max_params=2000)), copied.folder)
    (note,) = [note for note in run.all_stages()["notes"] if "the supernet was trained for" in note]
    assert "1,000" in note


def test_a_search_has_one_name_however_many_trials_it_has(copied, tiny_recipe):
    name = copied.view.shared_name()
    run = Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__trials=99)), copied.folder)
    assert run.view.shared_name() == name


def test_what_is_left_of_a_training_with_other_settings_is_not_gone_on_with(copied, tiny_recipe):
    copied.forget("retrained")
    checkpoint = copied.folder / "retrained" / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    Run.create(Recipe.model_validate(with_keys(tiny_recipe, retrain__training__learning_rate=1.0)), copied.folder)
    assert not checkpoint.exists()


def test_a_wrong_later_section_changes_nothing(copied, tiny_recipe, finished_run):
    with pytest.raises(UserError, match=r"search\.options"):
        Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__options={"parents": 3})), copied.folder)
    assert left(copied) == DONE
    assert Run(copied.folder).view.recipe == finished_run[0].view.recipe


@pytest.mark.usefixtures("impatient")
def test_a_folder_in_use_is_not_changed(copied, tiny_recipe):
    with copied.working(), pytest.raises(UserError, match="no other process works in"):
        Run.create(Recipe.model_validate(with_keys(tiny_recipe, search__trials=99)), copied.folder)
    assert left(copied) == DONE


def test_a_folder_in_which_nothing_has_begun_takes_any_recipe(recipe, tiny_recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    (run.folder / "supernet").mkdir()  # of a training that ended before its first checkpoint
    other = with_keys(tiny_recipe, seed=7, space="lora-ranks", supernet__training__per_device_train_batch_size=8)
    run = Run.create(Recipe.model_validate(other), run.folder)
    assert (run.context.recipe.seed, run.view.recipe["space"]) == (7, "lora-ranks")
    assert yaml.safe_load((run.folder / "space.yaml").read_text())["name"] == "lora-ranks"
    assert not (run.folder / "supernet").exists()
    (run.folder / "supernet" / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(UserError, match="seed is 0 here and was 7"):
        Run.create(recipe, run.folder)


def test_every_key_of_the_recipe_pins_the_folder_or_belongs_to_a_later_stage(recipe):
    pinned = {key for key in json.loads(recipe.model_dump_json(by_alias=True)) if stages_of(key) is None}
    assert pinned == {"name", "seed", "task", "data", "space", "supernet"}


def test_a_supernet_in_training_is_stale_where_other_sizes_are_to_be_trained(recipe, tiny_recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    checkpoint = run.folder / "supernet" / "checkpoints" / "checkpoint-4"
    for keys, stays in (({"search__trials": 3}, True), ({"search__max_params": 500}, False)):
        checkpoint.mkdir(parents=True)
        Run.create(Recipe.model_validate(with_keys(tiny_recipe, **keys)), run.folder)
        assert checkpoint.exists() is stays
        if stays:
            checkpoint.rmdir()
