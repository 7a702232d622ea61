"""Making a run folder, and opening the one that the same recipe made."""

from __future__ import annotations

import copy
import shutil

import pytest
import yaml

from glora_search import Recipe, Run
from glora_search.errors import UserError
from glora_search.run import runner


def test_a_folder_of_another_recipe_is_refused_and_left_as_it_is(finished_run, tiny_recipe):
    run, metrics = finished_run
    other = copy.deepcopy(tiny_recipe)
    other["supernet"]["sharing"] = "nested"
    with pytest.raises(UserError, match=r"supernet\.sharing is 'nested' here and was 'separate'"):
        Run.create(Recipe.model_validate(other), run.folder)
    assert run.view.done("test") == metrics


def test_a_folder_of_a_version_with_fewer_keys_goes_on_where_todays_defaults_are_kept(copied, recipe, tiny_recipe):
    run = copied
    path = run.folder / "recipe.yaml"
    old = yaml.safe_load(path.read_text())
    del old["supernet"]["patience"]
    path.write_text(yaml.safe_dump(old))
    Run.create(recipe, run.folder)
    other = {**tiny_recipe, "supernet": {**tiny_recipe["supernet"], "patience": 3}}
    with pytest.raises(UserError, match=r"supernet\.patience is 3 here and was None"):
        Run.create(Recipe.model_validate(other), run.folder)


def test_a_folder_of_another_space_is_refused(finished_run, tiny_recipe, tmp_path):
    run, _ = finished_run
    path = tmp_path / "glora-ranks.yaml"
    path.write_text("paths: {B: [lora, none]}\n")
    other = Recipe.model_validate(tiny_recipe)
    recipe = Recipe.model_validate({**tiny_recipe, "space": str(path)})
    assert other.space != recipe.space
    with pytest.raises(UserError, match=r"another space: "):
        Run.create(recipe, run.folder)


def test_a_folder_that_is_not_a_run_folder_is_not_written_into(recipe, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="run-dir"):
        Run.create(recipe, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="run folder"):
        Run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {"max_params": 0, "trials": 5}, "space": "SPACE"}, ["search.max_params", "0", "cheapest"]),
        ({"space": "EMPTY"}, ["space.targets", "no_such_layer"]),
        ({"space": "nothing.yaml"}, ["space", "nothing.yaml", "glora-paper"]),
        ({"task": {"model": "./no-such-folder"}}, ["task.model", "no-such-folder"]),
        ({"task": {"model": "no-such-owner/no-such-model"}}, ["task.model", "no-such-owner/no-such-model", "minilm"]),
        ({"search": {"options": {"populaton": 5}}}, ["search.options", "populaton"]),
        ({"supernet": {"sampling": "best"}}, ["supernet.sampling", "best", "sizes", "import path"]),
        ({"supernet": {"sampling_options": {"anchors": 1}}}, ["supernet.sampling_options", "anchors"]),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tiny_recipe, tmp_path, changes, words):
    (tmp_path / "fixed.yaml").write_text("paths: {B: [lora], E: [vector]}\nranks: [2]\n")
    (tmp_path / "empty.yaml").write_text("targets: [no_such_layer]\npaths: {B: [lora, none]}\n")
    files = {"SPACE": str(tmp_path / "fixed.yaml"), "EMPTY": str(tmp_path / "empty.yaml")}
    changes = {key: files.get(value, value) if key == "space" else value for key, value in changes.items()}
    folder = tmp_path / "run"
    with pytest.raises(UserError) as error:
        Run.create(Recipe.model_validate({**tiny_recipe, **changes}), folder)
    for word in words:
        assert word in str(error.value)
    assert not folder.exists()


def test_a_space_yaml_of_the_users_own_is_not_overwritten(recipe, tmp_path):
    (tmp_path / "space.yaml").write_text("# mine\npaths: {B: [lora, none]}\n")
    with pytest.raises(UserError, match="run-dir"):
        Run.create(recipe, tmp_path)
    assert (tmp_path / "space.yaml").read_text().startswith("# mine")


def test_a_run_folder_that_a_kill_left_half_made_is_made_again(recipe, tmp_path):
    Run.create(recipe, tmp_path / "a")
    (tmp_path / "a" / "recipe.yaml").rename(tmp_path / "a" / "recipe.yaml.part")
    assert Run.create(recipe, tmp_path / "a").context.recipe == recipe


def test_a_run_made_with_settings_of_other_hardware_still_opens(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    data = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    data["supernet"]["training"] |= {"bf16": True, "use_cpu": False}
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert Run(run.folder).context.recipe.supernet.training["bf16"] is True


def test_a_run_made_before_recipes_had_all_their_keys_still_goes_on(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    data = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    newer = [data["task"].pop(key) for key in ("prompt", "options")]
    newer += [data["data"].pop(key) for key in ("text_pair_column", "response_column", "image_column")]
    assert newer == [None] * 5
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert Run.create(recipe, run.folder).context.recipe == recipe


def test_a_space_that_is_described_in_other_words_is_the_same(copied, recipe):
    run = copied
    path = run.folder / "space.yaml"
    space = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**space, "description": "in other words"}))
    assert Run.create(recipe, run.folder).folder == run.folder
    path.write_text(yaml.safe_dump({**space, "ranks": [7]}))
    with pytest.raises(UserError, match="another space: ranks is"):
        Run.create(recipe, run.folder)


def test_paths_are_whole_so_that_any_working_directory_will_do(
    tiny_recipe, tiny_model, tiny_csv, tmp_path, monkeypatch
):
    home = tmp_path / "\u043c\u043e\u0438 \u0440\u0435\u0446\u0435\u043f\u0442\u044b"
    shutil.copytree(tiny_model, home / "model")
    for split, path in tiny_csv.items():
        shutil.copy(path, home / f"{split}.csv")
    (home / "mine.yaml").write_text("paths: {B: [lora, none]}\nranks: [1, 2]\n")
    monkeypatch.chdir(home)
    data = {"source": "csv", **{split: f"{split}.csv" for split in tiny_csv}}
    here = {**tiny_recipe, "task": {**tiny_recipe["task"], "model": "model"}, "data": data, "space": "mine.yaml"}
    recipe = Recipe.model_validate(here)
    run = Run.create(recipe, "\u2116 1")
    monkeypatch.chdir(tmp_path)
    again = Run(home / run.folder)
    assert len(again.context.task.train) == 64
    assert again.context.recipe.space == str(home / "mine.yaml")
    monkeypatch.chdir(home)
    assert Run.create(recipe, "\u2116 1").context.recipe == again.context.recipe


def test_of_two_recipes_that_make_a_folder_at_once_one_is_refused(recipe, tiny_recipe, tmp_path, monkeypatch):
    check = runner.check

    def beaten(asked):
        monkeypatch.setattr(runner, "check", check)
        Run.create(Recipe.model_validate({**tiny_recipe, "seed": 7}), tmp_path / "run")
        return check(asked)

    monkeypatch.setattr(runner, "check", beaten)
    with pytest.raises(UserError, match="no other process makes a run in"):
        Run.create(recipe, tmp_path / "run")
    assert Run(tmp_path / "run").context.recipe.seed == 7
