"""The seconds of a stage, whatever was killed on the way."""

from __future__ import annotations

import time

import pytest

from glora_search import Recipe, Run
from glora_search.files.text import read_json, write_json
from glora_search.run import clock
from glora_search.run.clock import clocked, go_on_from

NOTE = ".stage.seconds.json"


def test_seconds_are_noted_while_the_work_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "BEAT", 0.001)
    deadline = time.monotonic() + 60
    with clocked(tmp_path / "stage"):
        while not (tmp_path / NOTE).exists():
            assert time.monotonic() < deadline


def test_the_seconds_of_an_interrupted_call_count(tmp_path):
    go_on_from(tmp_path / "stage", 100.0)
    with pytest.raises(InterruptedError), clocked(tmp_path / "stage"):
        raise InterruptedError
    assert read_json(tmp_path / NOTE)["seconds"] >= 100
    with clocked(tmp_path / "stage") as seconds:
        assert seconds() >= 100


def test_a_damaged_note_counts_nothing(tmp_path):
    (tmp_path / NOTE).write_text("{")
    with clocked(tmp_path / "stage") as seconds:
        assert seconds() < 100


@pytest.mark.slow
def test_a_stage_that_was_killed_notes_all_of_its_seconds(copied):
    go_on_from(copied.folder / "search", 1000.0)  # of what is forgotten
    copied.forget("search")
    assert not list(copied.folder.glob(".*.seconds.json"))
    go_on_from(copied.folder / "search", 1000.0)
    assert 1000 <= copied.do("search")["seconds"] < 2000
    assert not list(copied.folder.glob(".*.seconds.json"))


@pytest.mark.slow
def test_a_search_of_more_trials_notes_all_of_its_seconds(copied):
    noted = copied.view.result("search")
    write_json(copied.folder / "search" / "stage.json", {**noted, "seconds": 1000.0})
    recipe = Recipe.load(copied.folder / "recipe.yaml", [f"search.trials={noted['trials'] + 1}"])
    run = Run.create(recipe, copied.folder)
    assert run.do("search")["seconds"] >= 1000
