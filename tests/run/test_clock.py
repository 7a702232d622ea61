"""The seconds of a stage, whatever was killed on the way."""

from __future__ import annotations

import time

import pytest

from glora_search import Recipe, Run
from glora_search.files.text import read_json, write_json
from glora_search.run import clock
from glora_search.run.clock import FILE, clocked, go_on_from


def test_seconds_are_noted_while_the_work_lasts(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "BEAT", 0.001)
    deadline = time.monotonic() + 60
    with clocked(tmp_path):
        while not (tmp_path / FILE).exists():
            assert time.monotonic() < deadline


def test_the_seconds_of_an_interrupted_call_count(tmp_path):
    go_on_from(tmp_path, 100.0)
    with pytest.raises(InterruptedError), clocked(tmp_path):
        raise InterruptedError
    assert read_json(tmp_path / FILE)["seconds"] >= 100
    with clocked(tmp_path) as seconds:
        assert seconds() >= 100


def test_a_folder_that_the_work_removes_is_not_made_again(tmp_path):
    folder = tmp_path / "stage"
    folder.mkdir()
    with clocked(folder):
        folder.rmdir()
    assert not folder.exists()


def test_a_damaged_note_counts_nothing(tmp_path):
    (tmp_path / FILE).write_text("{")
    with clocked(tmp_path) as seconds:
        assert seconds() < 100


@pytest.mark.slow
def test_a_stage_that_was_killed_notes_all_of_its_seconds(copied):
    copied.forget("search")
    (copied.folder / "search").mkdir()
    go_on_from(copied.folder / "search", 1000.0)
    assert copied.do("search")["seconds"] >= 1000
    assert not (copied.folder / "search" / FILE).exists()


@pytest.mark.slow
def test_a_search_of_more_trials_notes_all_of_its_seconds(copied):
    noted = copied.view.result("search")
    write_json(copied.folder / "search" / "stage.json", {**noted, "seconds": 1000.0})
    recipe = Recipe.load(copied.folder / "recipe.yaml", [f"search.trials={noted['trials'] + 1}"])
    run = Run.create(recipe, copied.folder)
    assert run.do("search")["seconds"] >= 1000
