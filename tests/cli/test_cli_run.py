"""The command line: its exit codes, its messages, and the final table."""

from __future__ import annotations

import copy
import html
import threading
from pathlib import Path

import peft
import pytest
import torch
import yaml
from filelock import FileLock
from peft import PeftConfig, PeftModel

from glora_search.adapters.load import load_adapter
from glora_search.recipe.schema import Recipe
from glora_search.run.folder import RunFolder
from glora_search.run.runner import Run

pytestmark = pytest.mark.slow


def test_run_ends_with_the_table_and_the_command_that_uses_the_model(call, recipe_file, tmp_path):
    code, out, _ = call("run", recipe_file, "--run-dir", tmp_path / "run", "--set", "search.trials=10")
    assert code == 0
    for text in ("lora r=", "best subnet", "final subnet", "merged", "validation", "test", "differ by at most"):
        assert text in out
    assert "pipeline('text-classification'" in out
    report = tmp_path / "run" / "report.html"
    report.write_text("of before")
    code, again, _ = call("evaluate", tmp_path / "run")
    assert code == 0
    assert "baseline: lora r=" in report.read_text()
    assert "final subnet" in again
    code, out, _ = call("merge", tmp_path / "run")
    assert code == 0
    assert "already done" in out


def test_stages_run_one_by_one(call, recipe_file, tmp_path):
    folder = tmp_path / "my run"
    first = f"glora-search train-supernet '{folder}'"
    code, out, _ = call("prepare", recipe_file, "--run-dir", folder)
    assert code == 0
    assert first in out.replace("\n", "")
    code, out, _ = call("report", folder)
    assert code == 0
    assert str(folder / "report.html") in out.replace("\n", "")
    assert first in html.unescape((folder / "report.html").read_text())
    code, _, err = call("search", folder)
    assert code == 2
    assert first in err
    for command, result in (
        ("train-supernet", "supernet/stage.json"),
        ("search", "search/trials.csv"),
        ("export", "best/adapter_config.json"),
        ("retrain", "retrained/adapter_config.json"),
        ("merge", "merged/model.safetensors"),
        ("baselines", "baselines/lora/adapter_config.json"),
        ("evaluate", "report.html"),
    ):
        assert not (folder / result).exists()
        code, out, err = call(command, folder)
        assert (code, err) == (0, "")
        assert (folder / result).is_file()
    assert "final subnet" in out
    before = (folder / "supernet" / "stage.json").stat().st_mtime_ns
    code, _, _ = call("search", folder, "--again")
    assert code == 0
    assert not (folder / "merged").exists()
    assert not (folder / "metrics.json").exists()
    assert (folder / "baselines" / "stage.json").is_file()
    assert (folder / "supernet" / "stage.json").stat().st_mtime_ns == before


def test_the_final_subnet_is_exported_in_formats_that_need_no_glora_search(call, recipe_file, tmp_path):
    folder = tmp_path / "run"
    lora_only = ("--set", "space=lora-ranks", "--set", "supernet.training.num_train_epochs=1")
    assert call("prepare", recipe_file, "--run-dir", folder, *lora_only)[0] == 0
    code, _, err = call("export", folder, "--format", "peft")
    assert code == 2
    assert "glora-search export" in err
    for command in ("train-supernet", "search", "export"):
        assert call(command, folder)[0] == 0
    run = Run(folder)
    with torch.no_grad():
        batch = {name: value for name, value in run.context.validation[0].items() if name != "labels"}
        expected = load_adapter(run.context.task.model(), folder / "best").eval()(**batch).logits
        for form, kind, *pad in (
            ("peft", peft.GloraConfig),
            ("lora", peft.LoraConfig),
            ("lora", peft.LoraConfig, "--pad"),
        ):
            for _ in range(2):  # an earlier export is replaced
                code, out, _ = call("export", folder, "--format", form, *pad)
                assert code == 0
            where = folder / "exports" / form
            config, card = PeftConfig.from_pretrained(where), (where / "README.md").read_text()
            assert type(config) is kind
            assert "glora_search" not in card
            if form == "lora":
                ranks = set(config.rank_pattern.values())
                assert not (pad and ranks)
                assert ("need one rank for all: use --pad" in " ".join(out.split())) == (len(ranks) > 1)
                assert ("every reader of LoRA scales alike" if len(ranks) < 2 else "export with `--pad`") in card
            found = PeftModel.from_pretrained(run.context.task.model(), where).eval()(**batch).logits
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert sorted(path.name for path in (folder / "exports").iterdir()) == ["lora", "peft"]
    assert call("export", folder, "--format", "merged")[0] == 0
    assert (folder / "merged" / "model.safetensors").is_file()
    assert call("export", folder, "--again")[0] == 0
    assert not (folder / "exports").exists()


def test_a_format_that_cannot_be_written_is_refused_and_leaves_nothing(call, recipe_file, tmp_path):
    folder = tmp_path / "run"
    assert call("prepare", recipe_file, "--run-dir", folder, "--set", "space=odd.yaml")[0] == 2
    odd = tmp_path / "odd.yaml"
    odd.write_text("paths: {B: [lora], E: [vector]}\nranks: [1]\n")
    only = ("--set", f"space={odd}", "--set", "search.max_params=null", "--set", "search.trials=1")
    assert call("prepare", recipe_file, "--run-dir", folder, *only)[0] == 0
    for command in ("train-supernet", "search", "export"):
        assert call(command, folder)[0] == 0
    code, _, err = call("export", folder, "--format", "lora")
    assert code == 2
    assert "a LoRA cannot express E" in err
    code, _, err = call("export", folder, "--format", "onnx")
    assert code == 2
    assert "--format: got 'onnx'; allowed: one of 'glora', 'peft', 'lora', 'merged'" in err
    code, _, err = call("export", folder, "--format", "peft", "--again")
    assert code == 2
    assert "--again" in err
    assert not list((folder / "exports").iterdir())


def test_again_removes_nothing_where_the_stage_could_not_be_done(call, tiny_recipe, tiny_csv, tmp_path):
    train = tmp_path / "train.csv"
    train.write_bytes(Path(tiny_csv["train"]).read_bytes())
    recipe = {**tiny_recipe, "data": {**tiny_recipe["data"], "train": str(train)}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert call("run", tmp_path / "r.yaml", "--run-dir", tmp_path / "run")[0] == 0
    files = sorted(str(path) for path in (tmp_path / "run").rglob("*"))
    train.unlink()
    code, _, err = call("search", tmp_path / "run", "--again")
    assert code == 2
    assert "data.train" in err
    assert sorted(str(path) for path in (tmp_path / "run").rglob("*")) == files


@pytest.mark.usefixtures("impatient")
def test_a_folder_that_another_process_works_in_is_refused(call, recipe_file, tmp_path):
    folder = tmp_path / "run"
    Run.create(Recipe.load(recipe_file), folder)
    with FileLock(folder / ".lock"):
        code, _, err = call("train-supernet", folder)
    assert code == 2
    assert "no other process" in err


def test_a_stage_waits_for_a_look_at_the_folder_to_end(recipe_file, tmp_path):
    run = Run.create(Recipe.load(recipe_file), tmp_path / "run")
    look = FileLock(run.folder / ".lock", thread_local=False)
    look.acquire()
    threading.Timer(0.2, look.release).start()
    with run.working():
        assert RunFolder(run.folder).is_busy()
    assert not RunFolder(run.folder).is_busy()


def test_a_run_of_several_processes_without_a_launcher_is_refused(call, recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("run", recipe_file, "--run-dir", tmp_path / "run")
    assert code == 2
    assert "WORLD_SIZE" in err


def changed(name, **changes):
    def change(data, folder):
        data[name] = {**data[name], **changes} if isinstance(data[name], dict) else changes["to"]

    return change


def space(text):
    def change(data, folder):
        path = folder / "mine.yaml"
        path.write_text(text)
        data["space"] = str(path)

    return change


def test_label(data, folder):
    path = folder / "test.csv"
    path.write_text("text,label\na goal,sports\na song,music\n")
    data["data"] = {**data["data"], "test": str(path)}


test_label.__test__ = False

MISTAKES = {
    "a space that matches no layer": (space("targets: [nothing]\npaths: {B: [lora, none]}"), ["targets", "nothing"]),
    "a pattern that is none": (space("targets: '*query'\npaths: {B: [lora, none]}"), ["targets", "*query"]),
    "an override that is no pattern": (
        space("paths: {B: [lora, none]}\noverrides: {'query(': {ranks: [1]}}"),
        ["overrides", "query("],
    ),
    "an override that matches no layer": (
        space("paths: {B: [lora, none]}\noverrides: {qeury: {ranks: [1]}}"),
        ["overrides", "qeury", "attention"],
    ),
    "a kind that a path cannot take": (space("paths: {C: [constant]}"), ["paths.C", "constant", "vector"]),
    "a path that is none": (space("paths: {F: [lora]}"), ["F", "A_B"]),
    "targets of a wrong type": (space("targets: {a: 1}\npaths: {B: [lora]}"), ["targets", "module names"]),
    "a rank that is no number": (space("paths: {B: [lora]}\nranks: [true]"), ["ranks", "True"]),
    "a label found only in the test split": (test_label, ["data.test", "music", "sports, tech"]),
    "a column that is missing": (changed("data", text_column="body"), ["data.text_column", "body", "text, label"]),
    "one column for both": (changed("data", text_column="label"), ["label_column", "another column"]),
    "a budget below the cheapest subnet": (
        lambda data, folder: [
            change(data, folder)
            for change in (space("paths: {B: [lora]}\nranks: [2]"), changed("search", max_params=9))
        ],
        ["search.max_params", "9", "cheapest"],
    ),
    "inputs longer than the model's": (changed("task", max_length=600), ["task.max_length", "600", "32"]),
    "a training setting that needs another": (
        lambda data, folder: data["supernet"]["training"].update(load_best_model_at_end=True),
        ["supernet.training", "load_best_model_at_end"],
    ),
}


@pytest.mark.parametrize(("change", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_recipe_or_a_space_writes_nothing(call, tiny_recipe, tmp_path, change, words):
    data = copy.deepcopy(tiny_recipe)
    change(data, tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    code, _, err = call("run", path, "--run-dir", tmp_path / "run")
    assert code == 2
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_recipe_is_refused_with_exit_code_2(call, recipe_file, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    code, _, err = call("run", recipe_file, "--run-dir", finished, "--set", "seed=7")
    assert code == 2
    assert "seed is 7 here and was 0" in err
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_search_is_extended_by_the_recipe_or_by_an_option(call, recipe_file, finished):
    before = (finished / "supernet" / "stage.json").read_bytes()
    code, out, _ = call("run", recipe_file, "--run-dir", finished, "--set", "search.trials=14")
    assert code == 0
    for words in ("search.trials: 14, was 12", "search: continuing from 12 trials", "search: removing best/"):
        assert words in out
    assert RunFolder(finished).result("search")["trials"] == 14
    code, out, _ = call("search", finished, "--trials", "16")
    assert code == 0
    assert "continuing from 14 trials" in out
    assert RunFolder(finished).result("search")["trials"] == 16
    assert RunFolder(finished).recipe["search"]["trials"] == 16
    code, out, _ = call("search", finished, "--trials", "9")
    assert (code, "already done" in out) == (0, True)
    code, out, _ = call("search", finished, "--trials", "10", "--again")
    assert code == 0
    assert RunFolder(finished).result("search")["trials"] == 10
    assert (finished / "supernet" / "stage.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nothing.yaml"], ["recipe", "nothing.yaml", "quickstart"]),
        (["run", "quickstart", "--set", "sede=1"], ["sede", "did you mean seed"]),
        (["run", "quickstart", "--set", "space=nothing"], ["space", "nothing", "glora-paper"]),
        (["run", "quickstart", "--set", "task.model=owner/none"], ["task.model", "owner/none", "hub"]),
        (["run", "quickstart", "--set", "data={source: hub, name: owner/none}"], ["data.name", "owner/none"]),
        (["run", "quickstart", "--set", "data={source: csv, train: none.csv}"], ["data.train", "none.csv"]),
        (["search", "nowhere"], ["run", "nowhere"]),
        (["report", "nowhere"], ["run", "nowhere"]),
        (["run", "."], ["recipe", "quickstart"]),
        (["run", ""], ["recipe", "quickstart"]),
        (["run", "quickstart", "--set", "space=."], ["space", "glora-paper"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(call, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*arguments)
    assert code == 2
    assert "Traceback" not in err
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_help_lists_every_stage(call):
    code, out, _ = call("--help")
    assert code == 0
    for command in ("run", "train-supernet", "search", "export", "retrain", "merge", "baselines", "evaluate", "report"):
        assert command in out


def test_wrong_workers_are_refused_before_anything_is_written(call, recipe_file, tmp_path):
    for count, allowed in (("0", "1 or more"), ("2", "1, since the recipe has no section finals")):
        code, _, err = call("run", recipe_file, "--run-dir", tmp_path / "run", "--workers", count)
        assert (code, err) == (2, f"error: --workers: got {count}; allowed: {allowed}\n")
        assert not (tmp_path / "run").exists()


def test_a_search_goes_on_without_the_file_of_its_space(call, recipe_file, tmp_path):
    space = tmp_path / "mine.yaml"
    space.write_text("paths: {B: [lora, none]}\nranks: [1, 2]\n")
    folder = tmp_path / "run"
    assert call("prepare", recipe_file, "--run-dir", folder, "--set", f"space={space}")[0] == 0
    for command in ("train-supernet", "search"):
        assert call(command, folder)[0] == 0
    space.unlink()
    code, _, err = call("search", folder, "--trials", "15")
    assert (code, err) == (0, "")
    assert Run(folder).view.result("search")["trials"] == 15
