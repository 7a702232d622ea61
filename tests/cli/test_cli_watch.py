"""``status`` and ``dashboard``."""

from __future__ import annotations

import json
import shutil
import sys
import types

import optuna
import pandas as pd
import pytest
from filelock import FileLock

from glora_search.cli import watch
from glora_search.run.folder import RunFolder
from glora_search.search.shared.storage import JournalReader


@pytest.fixture
def states(call):
    """``states(run)``: command -> its state, and all of the status."""

    def read(run):
        code, out, err = call("status", run, "--json")
        assert (code, err) == (0, "")
        found = json.loads(out)
        return {stage["command"]: stage["state"] for stage in found["stages"]}, found

    return read


def test_a_finished_run_is_done_with_its_seconds_and_its_best(states, call, finished):
    found, everything = states(finished)
    assert found.pop("finals") == "left out"
    assert set(found.values()) == {"done"}
    seconds = {stage["stage"]: stage["seconds"] for stage in everything["stages"]}
    assert seconds.pop("finals") is None
    assert all(isinstance(value, float) for value in seconds.values())
    stage = json.loads((finished / "search" / "stage.json").read_text())
    assert everything["search"]["trials"] == everything["search"]["of"] == 12
    assert everything["search"]["best"]["validation"] == stage["best"]["validation"]
    code, out, _ = call("status", finished)
    assert code == 0
    assert "budget 1,000 parameters" in out
    assert "search: 12 of 12 trials" in out


def test_an_unfinished_search_is_read_from_its_journal(states, finished):
    done = json.loads((finished / "search" / "stage.json").read_text())
    (finished / "search" / "stage.json").unlink()
    shutil.rmtree(finished / "retrained")
    journal = finished / "search" / "journal.log"
    before = journal.read_bytes()
    journal.write_bytes(before + b'{"op_code": 4, "half')  # as a writer leaves it for a moment
    found, everything = states(finished)
    assert found["search"] == "interrupted"
    assert found["retrain"] == "not begun"
    assert everything["search"]["trials"] == 12
    for key in ("validation", "params", "origin"):
        assert everything["search"]["best"][key] == done["best"][key]
    assert journal.read_bytes() == before + b'{"op_code": 4, "half'


def test_a_stage_that_a_process_works_at_is_running(states, finished):
    (finished / "search" / "stage.json").unlink()
    (finished / "metrics.json").unlink()
    with FileLock(finished / ".lock"):
        found, everything = states(finished)
    assert everything["busy"]
    assert found["search"] == "running"
    assert found["evaluate"] == "not begun"
    assert states(finished)[0]["search"] == "interrupted"


def test_the_last_stage_is_running_where_all_others_are_done(states, finished):
    (finished / "metrics.json").unlink()
    with FileLock(finished / ".lock"):
        assert states(finished)[0]["evaluate"] == "running"


def test_a_run_that_was_only_prepared_has_not_begun(states, call, tiny_recipe, tmp_path):
    import yaml

    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**tiny_recipe, "baselines": []}))
    assert call("prepare", tmp_path / "r.yaml", "--run-dir", tmp_path / "run", "--quiet") == (0, "", "")
    (tmp_path / "run" / ".lock").unlink()
    found, everything = states(tmp_path / "run")
    assert found.pop("baselines") == found.pop("finals") == "left out"
    assert set(found.values()) == {"not begun"}
    assert everything["search"] is None
    assert not (tmp_path / "run" / "search").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_shared_search_is_looked_at_in_its_storage(call, finished):
    shutil.rmtree(finished / "search")
    storage = f"sqlite:///{finished}/shared.db"
    assert call("search", finished, "--storage", storage, "--quiet")[0] == 0
    (finished / "search" / "stage.json").unlink()
    code, out, _ = call("status", finished, "--storage", storage, "--json")
    assert code == 0
    assert json.loads(out)["search"]["trials"] == 12


def test_a_journal_that_is_looked_at_cannot_be_changed(finished):
    storage = RunFolder(finished).journal()
    assert isinstance(storage._backend, JournalReader)
    trials = optuna.load_study(study_name="search", storage=storage).trials
    assert len(trials) == len(pd.read_csv(finished / "search" / "trials.csv"))
    with pytest.raises(OSError, match="not changed"):
        optuna.delete_study(study_name="search", storage=storage)


def test_the_dashboard_is_an_extra(call, finished, monkeypatch):
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
    code, _, err = call("dashboard", finished)
    assert code == 2
    assert "pip install 'glora-search[dashboard]'" in err


def test_the_dashboard_serves_the_runs_journal_until_ctrl_c(call, finished, monkeypatch):
    served = []

    def run_server(storage, host, port):
        served.append((optuna.get_all_study_names(storage), host, port))
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "optuna_dashboard", types.SimpleNamespace(run_server=run_server))
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: True)
    code, out, err = call("dashboard", finished, "--port", "8123")
    assert (code, err) == (0, "")
    assert "http://127.0.0.1:8123/" in out
    assert served == [(["search", "search.workers"], "127.0.0.1", 8123)]


def test_a_port_that_cannot_be_used_is_named(call, finished, monkeypatch):
    pytest.importorskip("optuna_dashboard")
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: True)
    code, _, err = call("dashboard", finished, "--port", "-5")
    assert code == 2
    assert "--port: got -5" in err
