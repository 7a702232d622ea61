"""What a run was made from: what differs is named at each stage, before anything is done with it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from transformers import BertModel

from glora_search import Recipe, Run
from glora_search.errors import UserError
from glora_search.run import origin
from glora_search.run.formats import export_as
from glora_search.run.search import assist
from glora_search.run.stages import STAGES
from glora_search.tasks import fingerprints

DONE = [name for name in STAGES if name not in ("finals", "refitted")]


@pytest.fixture(scope="module")
def whole(tiny_recipe, tiny_model, tiny_csv, tmp_path_factory):
    """A folder with a model, data, and a run that was made from them, its stages all done."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text("{{ messages }}")
    for split, path in tiny_csv.items():
        shutil.copy(path, folder / f"{split}.csv")
    Run.create(recipe_in(folder, tiny_recipe), folder / "run").all_stages()
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """A copy of it, as if all of it had been made there."""
    folder = shutil.copytree(whole, tmp_path / "place")
    recipe = folder / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(str(whole), str(folder)))
    return folder


def recipe_in(folder, data, **splits):
    splits = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")} | splits
    task = {**data["task"], "model": str(folder / "model")}
    return Recipe.model_validate({**data, "task": task, "data": {"source": "csv", **splits}})


def a_row_more(folder):
    with (folder / "train.csv").open("a") as file:
        file.write("a brand new goal,sports\n")


def other_rows(folder):
    path = folder / "validation.csv"
    path.write_text(path.read_text().replace("chip", "code"))


def renamed_labels(folder):
    for split in ("train", "validation", "test"):
        path = folder / f"{split}.csv"
        path.write_text(path.read_text().replace(",sports", ",zports"))


def a_label_more(folder):
    with (folder / "train.csv").open("a") as file:
        file.write("rice and soup,food\n")


def other_test(folder):
    with (folder / "test.csv").open("a") as file:
        file.write("a goal,sports\n")


def other_weights(folder):
    model = BertModel.from_pretrained(folder / "model")
    path = folder / "model" / "model.safetensors"
    stat = path.stat()
    model.embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(folder / "model")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps its time has it


def other_config(folder):
    path = folder / "model" / "config.json"
    path.write_text(path.read_text().replace('"hidden_act": "gelu"', '"hidden_act": "relu"'))


def other_tokenizer(folder):
    path = folder / "model" / "tokenizer.json"
    path.write_text(path.read_text().replace('"goal"', '"laog"'))


def other_template(folder):
    (folder / "model" / "chat_template.jinja").write_text("now: {{ messages }}")


CHANGES = {
    "a row more": (a_row_more, ["data.train has 65 rows and had 64"]),
    "other rows": (other_rows, ["data.validation has other rows"]),
    "renamed labels": (renamed_labels, ["the labels are", "zports", "and were sports, tech"]),
    "a label more": (a_label_more, ["the labels are", "food", "data.train has 65 rows"]),
    "another test file": (other_test, ["data.test has other rows"]),
    "other weights": (other_weights, ["task.model: model.safetensors is another"]),
    "another config": (other_config, ["task.model: config.json is another"]),
    "another tokenizer": (other_tokenizer, ["tokenizer.json is another"]),
    "another chat template": (other_template, ["chat_template.jinja is another"]),
}


@pytest.mark.parametrize(("change", "words"), CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_is_named_with_what_to_do(place, change, words):
    change(place)
    (place / "run" / "search" / "stage.json").unlink()
    with pytest.raises(UserError) as error:
        Run(place / "run").do("search")
    for word in (*words, "Bring back", f"glora-search train-supernet {place / 'run'} --again"):
        assert word in str(error.value)


@pytest.mark.parametrize("name", [name for name in DONE if name != "supernet"])
def test_each_stage_asks(place, name):
    run = Run(place / "run")
    (run.folder / STAGES[name].written_last).unlink()
    a_row_more(place)
    before = sorted(run.folder.rglob("*"))
    for work in (run.do, run.forget):
        with pytest.raises(UserError, match="made from different data, model or code: data"):
            work(name)
    assert sorted(run.folder.rglob("*")) == before


def test_workers_and_exports_ask_too(place):
    a_row_more(place)
    for work in (lambda: assist(place / "run"), lambda: export_as(Run(place / "run"), "lora")):
        with pytest.raises(UserError, match=r"data\.train has 65 rows"):
            work()


def test_starting_over_takes_what_is_there_now_and_leaves_no_result_of_before(place):
    a_row_more(place)
    run = Run(place / "run")
    run.forget("supernet")
    assert not run.view.has_begun()
    run.do("supernet")
    assert json.loads((place / "run" / "origin.json").read_text())["data"]["train"]["rows"] == 65
    run.do("search")


def test_doing_the_first_stage_again_with_the_same_data_leaves_the_baselines(place):
    run = Run(place / "run")
    run.forget("supernet")
    assert run.view.done("baselines") is not None


def test_data_and_model_may_be_moved_and_others_are_refused(place, tiny_recipe, tmp_path):
    moved = shutil.copytree(place, tmp_path / "moved", ignore=shutil.ignore_patterns("run"))
    run = Run.create(recipe_in(moved, tiny_recipe), place / "run")
    assert [name for name in DONE if run.view.done(name) is not None] == DONE
    assert run.context.recipe.task.model == str(moved / "model")
    other_rows(place)
    with pytest.raises(UserError, match=r"another recipe: .*data\.validation is '.*data\.validation has other rows"):
        Run.create(recipe_in(place, tiny_recipe), place / "run")
    assert Run(place / "run").context.recipe.task.model == str(moved / "model")


def test_splits_that_are_cut_are_told_apart_by_their_rows(tiny_recipe, place, tmp_path):
    data = {"source": "csv", "train": str(place / "train.csv")}
    run = Run.create(Recipe.model_validate({**tiny_recipe, "data": data}), tmp_path / "run")
    run.do("supernet")
    a_row_more(place)
    with pytest.raises(UserError, match=r"data\.train .*data\.validation .*data\.test "):
        Run(run.folder).do("search")


def test_the_code_of_a_task_of_the_users_own_is_compared_too(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_base_of_mine.py").write_text(
        "from glora_search.tasks.text_classification import TextClassification as Base\n\n\n"
        "class Mine(Base):\n    mine = 1\n"
    )
    (tmp_path / "a_task_of_mine.py").write_text("import a_base_of_mine\n\n\nclass Task(a_base_of_mine.Mine): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    task = {**tiny_recipe["task"], "type": "a_task_of_mine.Task"}
    run = Run.create(Recipe.model_validate({**tiny_recipe, "task": task}), tmp_path / "run")
    run.do("supernet")
    noted = json.loads((run.folder / "origin.json").read_text())
    assert set(noted["code"]) == {"a_base_of_mine", "a_task_of_mine"}
    origin.check_origin(Run(run.folder).context)
    with (tmp_path / "a_base_of_mine.py").open("a") as file:
        file.write("    another = 2\n")
    origin.check_origin(Run(run.folder).context)  # this process runs what it has imported
    for module in ("a_task_of_mine", "a_base_of_mine"):  # as in the next process
        monkeypatch.delitem(sys.modules, module)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=r"or code: task: the module a_base_of_mine has changed\. Bring back"):
        Run(run.folder).do("search")
    del noted["code"]  # as an earlier version left it
    (run.folder / "origin.json").write_text(json.dumps(noted))
    origin.check_origin(Run(run.folder).context)


def test_other_versions_are_a_note(place, monkeypatch, capsys):
    (place / "run" / "metrics.json").unlink()
    versions = origin.versions
    monkeypatch.setattr(origin, "versions", lambda recipe: {**versions(recipe), "peft": "99.0"})
    Run(place / "run").do("test")
    assert "note: made with other versions (peft" in capsys.readouterr().out


def test_weights_that_nobody_has_written_are_not_read_again(place, monkeypatch):
    run = Run(place / "run")
    (run.folder / "metrics.json").unlink()
    noted = json.loads((run.folder / "origin.json").read_text())
    noted["model"] = origin._model_files(place / "model", {})
    (run.folder / "origin.json").write_text(json.dumps(noted))
    read, digest = [], fingerprints.file_digest
    monkeypatch.setattr(origin, "file_digest", lambda path: read.append(path) or digest(path))
    run.do("test")
    assert read == []


def test_a_run_of_a_version_that_noted_nothing_goes_on(place):
    (place / "run" / "origin.json").unlink()
    (place / "run" / "metrics.json").unlink()
    Run(place / "run").do("test")
    assert (place / "run" / "origin.json").is_file()


def test_a_run_of_a_version_that_noted_fewer_files_goes_on(place):
    path = place / "run" / "origin.json"
    noted = json.loads(path.read_text())
    del noted["model"]["chat_template.jinja"]
    path.write_text(json.dumps(noted))
    (place / "run" / "metrics.json").unlink()
    Run(place / "run").do("test")


def test_of_the_hubs_cache_the_names_of_the_contents_are_taken(tmp_path, monkeypatch):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, content in {"config.json": "c0ffee", "model.safetensors": "beef"}.items():
        (blobs / content).write_text("")
        (snapshot / name).symlink_to(blobs / content)
    monkeypatch.setattr(origin, "try_to_load_from_cache", lambda repository, name: str(snapshot / name))
    found = origin._model_files(origin._model_folder("owner/model"), {})
    assert {name: file["digest"] for name, file in found.items()} == {
        "config.json": "c0ffee",
        "model.safetensors": "beef",
    }
    only_config = {"config.json": found["config.json"]}
    assert origin._model(found, only_config, whole=False) == []  # the rest was not fetched here
    assert origin._model(found, only_config, whole=True) == ["task.model: model.safetensors is missing"]


def test_a_folder_of_images_is_named_by_its_files(tmp_path):
    path = tmp_path / "images" / "cat"
    path.mkdir(parents=True)
    (path / "1.png").write_bytes(b"one")
    first = fingerprints.file_digest(Path(tmp_path / "images"))
    (path / "1.png").rename(path / "2.png")
    assert fingerprints.file_digest(tmp_path / "images") != first


def test_unlabelled_rows_may_be_others_where_the_recipe_says_so(copied, tiny_recipe, tmp_path):
    def recipe_with(name):
        return Recipe.model_validate(
            {
                **tiny_recipe,
                "data": {**tiny_recipe["data"], "unlabelled": str(tmp_path / name)},
                "finals": {"teacher": 2},
            }
        )

    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"text\nold goal {name}\n")
    for name in ("a.csv", "b.csv"):
        run = Run.create(recipe_with(name), copied.folder)
        assert run.view.done("search") is not None
        origin.check_origin(run.context)
        assert json.loads((run.folder / "origin.json").read_text())["data"]["unlabelled"]["rows"] == 1
    (tmp_path / "b.csv").write_text("text\nnew goal\n")
    with pytest.raises(UserError, match=r"data\.unlabelled has other rows.*give the unlabelled rows another file name"):
        origin.check_origin(Run(copied.folder).context)
