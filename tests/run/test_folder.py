"""The read-only view of a run folder."""

from __future__ import annotations

import json
import shutil

import pytest

from glora_search.errors import UserError
from glora_search.run.compare import compare
from glora_search.run.folder import SHARED, RunFolder


@pytest.fixture
def folder(finished_run, tmp_path):
    return shutil.copytree(finished_run[0].folder, tmp_path / "copied")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("direction", "expected"), [("minimize", "best"), ("maximize", "retrained")])
def test_the_final_adapter_is_known_where_the_supernet_is_gone(folder, direction, expected):
    for stage, validation in (("best", 0.5), ("retrained", 0.6)):
        change(folder / stage / "stage.json", validation=validation, direction=direction)
    shutil.rmtree(folder / "supernet")
    assert RunFolder(folder).final()[0] == expected


def test_it_is_not_guessed_where_no_stage_has_noted_which_metric_is_better(folder):
    for stage in ("best", "retrained"):
        path = folder / stage / "stage.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "direction"}))
    shutil.rmtree(folder / "supernet")
    (folder / "metrics.json").unlink()
    with pytest.raises(UserError, match="train-supernet"):
        RunFolder(folder).final()


def test_a_retraining_that_diverged_never_is_the_final_adapter(folder):
    change(folder / "retrained" / "stage.json", validation=0.99, validation_loss=float("nan"))
    assert RunFolder(folder).final()[0] == "best"


def test_the_minutes_of_a_finished_run_count_what_was_removed_since(folder):
    before = compare([RunFolder(folder)])[0][0]["minutes"]
    shutil.rmtree(folder / "supernet")
    assert compare([RunFolder(folder)])[0][0]["minutes"] == pytest.approx(before)


def test_the_commands_that_it_names_can_be_given_to_a_shell_where_its_path_has_spaces(folder, tmp_path):
    run = RunFolder(folder.rename(tmp_path / "my run"))
    shutil.rmtree(run.path / "supernet")
    (run.path / "search" / "journal.log").unlink()
    (run.path / "search" / "trials.csv").write_text("changed")
    (run.path / "search" / SHARED).touch()
    messages = [str(run.merged_cannot_be_used(OSError("gone")))]
    for look in (run.weights, run.journal, run.trials, lambda: run.check_storage(None)):
        with pytest.raises(UserError) as error:
            look()
        messages.append(str(error.value))
    for message in messages:
        assert message.count("glora-search ") == message.count(f" '{run.path}'") > 0


def test_a_search_goes_on_only_where_its_trials_are(folder):
    run = RunFolder(folder)
    run.check_storage(None)
    with pytest.raises(UserError, match=r"are in this folder\. .* go on here: .* anew .*--again --storage STORAGE"):
        run.check_storage("sqlite:///x.db")
    (folder / "search" / SHARED).touch()
    run.check_storage("sqlite:///x.db")
    with pytest.raises(UserError, match="that --storage named"):
        run.check_storage(None)
    shutil.rmtree(folder / "search")
    run.check_storage("sqlite:///x.db")
