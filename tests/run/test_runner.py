"""Running stages: each once, on from where a kill left it, and again where its input has changed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import types

import pytest
import yaml
from filelock import FileLock
from pydantic import ImportString, TypeAdapter
from safetensors.torch import load_file, save_file
from transformers import Trainer

from glora_search import Run, SubnetEvaluator, SupernetTrainer
from glora_search.cli.app import app
from glora_search.cli.run import _stage_command
from glora_search.errors import UserError
from glora_search.run import baselines, evaluate, export, merge, retrain, supernet
from glora_search.run.folder import digest
from glora_search.run.stages import STAGES, Stage, made_from
from glora_search.run.status import status
from glora_search.tasks.text_classification import TextClassification

ALL_BUT_TEST = [name for name in STAGES if name not in ("test", "finals", "refitted")]


def test_a_finished_run_is_not_done_again(finished_run, recipe, monkeypatch):
    run, metrics = finished_run
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trained again"))
    monkeypatch.setattr(SubnetEvaluator, "__call__", lambda *args: pytest.fail("evaluated again"))
    monkeypatch.setattr(TextClassification, "test_split", lambda self: pytest.fail("the test split was read again"))
    assert Run.create(recipe, run.folder).all_stages() == metrics


def test_the_test_split_is_read_once_and_only_after_all_other_stages(recipe, tmp_path, monkeypatch):
    run = Run.create(recipe, tmp_path / "run")
    reads = []
    original = TextClassification.test_split

    def read(self):
        reads.append(sorted(path.parent.name for path in run.folder.glob("*/stage.json")))
        return original(self)

    monkeypatch.setattr(TextClassification, "test_split", read)
    run.all_stages()
    assert reads == [sorted(ALL_BUT_TEST)]


def kill_in(owner, name, call):
    """Patch a function so that its n-th call kills the process, as the kernel would."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def with_stages(names, finished_run, folder):
    """A copy of the finished run of which these stages are done."""
    left = [*(name for name in ALL_BUT_TEST if name not in names), "metrics.json"]
    return Run(shutil.copytree(finished_run[0].folder, folder, ignore=shutil.ignore_patterns(*left)))


KILLS = {
    "supernet, in its second epoch": (SupernetTrainer, "training_step", 6, []),
    "supernet, while it is saved": (supernet, "write_json", 2, []),
    "search": (SubnetEvaluator, "__call__", 6, ["supernet"]),
    "export": (export, "export_subnet", 1, ["supernet", "search"]),
    "retrain": (retrain, "write_card", 1, ["supernet", "search", "best"]),
    "merge": (merge, "merge", 1, ["supernet", "search", "best", "retrained"]),
    "baselines": (baselines, "adapter_params", 1, ["supernet", "search", "best", "retrained", "merged"]),
    "evaluate": (evaluate, "Batches", 1, ALL_BUT_TEST),
}


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name", "call", "expected"), KILLS.values(), ids=KILLS.keys())
def test_a_killed_run_goes_on_and_ends_as_one_that_was_not_killed(
    finished_run, without_seconds, recipe, tmp_path, owner, name, call, expected
):
    folder = tmp_path / "run"
    if expected:
        with_stages(expected, finished_run, folder)
    child = os.fork()
    if child == 0:
        kill_in(owner, name, call)
        Run.create(recipe, folder).all_stages()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    done = {stage for stage in ALL_BUT_TEST if (folder / stage / "stage.json").is_file()}
    assert done == set(expected)
    times = {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in done}
    metrics = Run.create(recipe, folder).all_stages()
    assert {stage: (folder / stage / "stage.json").stat().st_mtime_ns for stage in done} == times
    assert without_seconds(metrics) == without_seconds(finished_run[1])


@pytest.mark.parametrize(
    ("owner", "name", "stage", "done", "left"),
    # Killed in step 6 of 2 epochs of 4 steps, and in evaluation 6 of 12.
    [
        (SupernetTrainer, "training_step", "supernet", [], 4),
        (SubnetEvaluator, "__call__", "search", ["supernet"], 7),
    ],
)
def test_what_a_killed_stage_had_done_is_not_done_again(
    finished_run, recipe, tmp_path, monkeypatch, owner, name, stage, done, left
):
    folder = with_stages(done, finished_run, tmp_path / "run").folder
    child = os.fork()
    if child == 0:
        kill_in(owner, name, 6)
        Run.create(recipe, folder).all_stages()
        os._exit(0)
    os.waitpid(child, 0)
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    Run.create(recipe, folder).do(stage)
    assert len(calls) == left


def test_stages_run_alone_and_a_stage_whose_input_is_missing_names_the_command(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    with pytest.raises(UserError, match="train-supernet"):
        run.do("search")
    run.do("supernet")
    with pytest.raises(UserError, match="glora-search search"):
        run.do("best")
    run.do("search")
    run.do("best")
    assert run.do("merged")["source"] == "best"  # merging needs no retraining
    metrics = run.do("test")
    assert metrics["final"]["source"] == "inherited"
    assert metrics["baselines"] == []


@pytest.mark.slow
def test_doing_a_stage_again_removes_what_was_made_from_it_and_nothing_else(finished_run, without_seconds, copied):
    run = copied
    run.forget("search")
    left = {stage for stage in ALL_BUT_TEST if run.view.done(stage)}
    assert left == {"supernet", "baselines"}
    assert without_seconds(run.all_stages()) == without_seconds(finished_run[1])


@pytest.fixture
def added_stage(monkeypatch):
    """One more stage: a module with a function, and a row of the table."""
    calls = []

    def summarize(run, folder, *, words=2):
        calls.append(words)
        (folder / "note.txt").write_text(f"{run.recipe.name}: {run.view.result('best')['params']} parameters")
        return {"words": words}

    module = types.ModuleType("a_stage_of_ones_own")
    module.summarize = summarize
    monkeypatch.setitem(sys.modules, module.__name__, module)
    stage = Stage("note", "note", f"{module.__name__}:summarize", "Write a note.", needs=("best",))
    monkeypatch.setitem(STAGES, "note", stage)
    return calls


def test_a_stage_is_added_by_one_file_and_one_row(finished_run, added_stage, tmp_path):
    run = with_stages(["supernet", "search"], finished_run, tmp_path / "run")
    with pytest.raises(UserError, match="glora-search export"):
        run.do("note")
    run.all_stages()
    assert added_stage == [2]
    assert (run.folder / "note" / "note.txt").read_text().startswith("tiny: ")
    assert {entry["command"]: entry["state"] for entry in status(run.view)["stages"]}["note"] == "done"
    assert "note" in {stage.name for stage in made_from("search")}
    run.forget("best")
    assert run.view.done("note") is None
    run.do("best")
    assert run.do("note", words=3)["words"] == 3


def test_whether_a_stage_is_done_is_asked_again_under_the_lock(copied, added_stage, monkeypatch):
    run = copied
    acquire = FileLock.acquire

    def beaten(self, *args, **kwargs):
        """Another process does the stage while this one waits for the lock."""
        held = acquire(self, *args, **kwargs)
        folder = run.folder / "note"
        folder.mkdir(exist_ok=True)
        (folder / "stage.json").write_text('{"words": 9, "seconds": 1.0}')
        return held

    monkeypatch.setattr(FileLock, "acquire", beaten)
    assert run.do("note")["words"] == 9
    assert added_stage == []
    assert run.view.done("test") is not None  # what was made from it is not removed a second time


@pytest.mark.usefixtures("impatient")
def test_a_stage_that_another_process_works_at_is_refused(copied, added_stage):
    with FileLock(copied.view.lock), pytest.raises(UserError, match="no other process works in"):
        copied.do("note")


@pytest.mark.usefixtures("impatient")
def test_a_process_at_another_stage_is_no_search_to_join(copied, monkeypatch):
    copied.forget("search")
    (copied.folder / "search").mkdir()  # of a search that was killed
    (copied.folder / "baselines" / "stage.json").unlink()
    os.utime(copied.folder / "search", (0, 0))
    monkeypatch.setattr("glora_search.run.search.assist", lambda *args, **options: pytest.fail("joined"))
    with FileLock(copied.view.lock), pytest.raises(UserError, match="no other process works in"):
        copied.do("search")


def test_what_a_stage_needs_is_asked_again_under_the_lock(copied, monkeypatch):
    copied.forget("merged")
    acquire = FileLock.acquire

    def late(self, *args, **kwargs):
        held = acquire(self, *args, **kwargs)
        (copied.folder / "best" / "stage.json").unlink(missing_ok=True)
        return held

    monkeypatch.setattr(FileLock, "acquire", late)
    with pytest.raises(UserError, match="glora-search export"):
        copied.do("merged")


@pytest.mark.parametrize("stage", ["supernet", "search", "best", "retrained", "merged"])
def test_a_kill_while_results_are_removed_leaves_none_that_looks_done(copied, stage):
    child = os.fork()
    if child == 0:
        kill_in(shutil, "rmtree", 1)
        copied.forget(stage)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert copied.view.done(stage) is None
    assert not (copied.folder / stage).exists()
    copied.all_stages()
    assert copied.view.done("test") is not None
    assert not list(copied.folder.glob(".removed-*"))


def test_a_stage_that_the_recipe_leaves_out_is_refused_and_removes_nothing(copied):
    recipe = copied.folder / "recipe.yaml"
    with pytest.raises(UserError, match="has no section finals"):
        copied.do("finals")
    text, before = recipe.read_text(), sorted(copied.folder.iterdir())
    data = yaml.safe_load(text)
    shutil.rmtree(copied.folder / "baselines")
    for stage, change, said in (
        ("baselines", {"baselines": []}, r"baselines: .*has no baselines: the key is empty"),
        ("retrained", {"finals": {}}, r"retrain: .*has finals, whose winner is the final adapter"),
    ):
        recipe.write_text(yaml.safe_dump({**data, **change}))
        for act in (Run(copied.folder).do, Run(copied.folder).forget):
            if (stage, act.__name__) != ("retrained", "do"):  # which is done
                with pytest.raises(UserError, match=said):
                    act(stage)
    assert {*before} - {*copied.folder.iterdir()} == {copied.folder / "baselines"}


def test_weights_that_a_stage_has_not_left_are_not_used(copied):
    trained, best = (copied.folder / name / "adapter_model.safetensors" for name in ("retrained", "best"))
    assert copied.view.result("retrained")["weights"] == digest(trained)
    shutil.copy(best, trained)
    copied.forget("merged")
    with pytest.raises(
        UserError, match=r"retrained/adapter_model.*: not the weights that were trained.* retrain .*--again"
    ):
        copied.do("merged")
    (copied.folder / "retrained" / "stage.json").unlink()
    save_file({name: value + 1 for name, value in load_file(best).items()}, best)
    with pytest.raises(UserError, match=r"best/adapter_model.*: not the weights that were trained"):
        copied.do("retrained")


def test_all_that_is_removed_is_named(copied, capsys):
    (copied.folder / "exports" / "lora").mkdir(parents=True)
    copied.forget("retrained")
    said = capsys.readouterr().out
    assert "retrain: removing exports/, made from the old result" in said


def test_a_new_stage_has_its_command(added_stage, copied, call):
    before = list(app.registered_commands)
    _stage_command(STAGES["note"])
    try:
        code, out, err = call("note", copied.folder)
    finally:
        app.registered_commands[:] = before
    assert (code, err) == (0, "")
    assert "note: words 2" in out


@pytest.mark.parametrize(
    ("stage", "stale"),
    [
        ("supernet", ["search", "best", "retrained", "finals", "merged", "test", "refitted"]),
        ("finals", ["merged", "test", "refitted"]),
        ("best", ["retrained", "merged", "test"]),
        ("retrained", ["merged", "test"]),
        ("baselines", ["test"]),
        ("test", []),
        ("refitted", []),
    ],
)
def test_what_is_made_from_a_stage_follows_from_the_table(stage, stale):
    assert [made.name for made in made_from(stage)] == stale


def test_every_row_of_the_table_names_earlier_stages_and_a_function_that_is_there():
    seen = set()
    for stage in STAGES.values():
        assert seen.issuperset(stage.needs + stage.uses)
        seen.add(stage.name)
        for path in filter(None, (stage.function, stage.joined_by)):
            assert callable(TypeAdapter(ImportString).validate_python(path))


def test_workers_share_finals_only(recipe, tmp_path):
    run = Run.create(recipe, tmp_path / "run")
    with pytest.raises(UserError, match=r"^workers: got 2; allowed: 1, since the recipe has no section finals"):
        run.all_stages(workers=2)
    with pytest.raises(UserError, match=r"^workers: got 0; allowed: 1 or more"):
        run.all_stages(workers=0)
    assert not run.view.has_begun()


def test_a_stages_folder_that_is_a_link_is_done_again_and_what_it_leads_to_stays(copied, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (copied.folder / "retrained").rename(elsewhere)
    (copied.folder / "retrained").symlink_to(elsewhere)
    copied.forget("retrained")
    assert not (copied.folder / "retrained").exists()
    assert not list(copied.folder.glob(".removed-*"))
    assert (elsewhere / "stage.json").is_file()
    copied.do("retrained")
    assert not (copied.folder / "retrained").is_symlink()
