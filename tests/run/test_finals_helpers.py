"""Processes that help with a race: they end with it, with their parent, and leave another race alone."""

from __future__ import annotations

import multiprocessing
import os
import time

import psutil
import pytest

from glora_search.errors import UserError
from glora_search.files.claims import claimed
from glora_search.finals.contest import Contest
from glora_search.recipe.schema import Recipe
from glora_search.run import finals
from glora_search.run.runner import Run
from glora_search.search.shared import workers


def test_a_process_that_comes_when_the_race_is_over_trains_nothing(searched, monkeypatch):
    searched.do("finals")
    monkeypatch.setattr(Contest, "_train_one", lambda *args: pytest.fail("trained"))
    finals.assist(searched.folder)
    assert not list(searched.folder.rglob("checkpoints"))


def test_a_process_that_helped_with_an_earlier_race_leaves_the_next_one_alone(searched, monkeypatch):
    ready, original = searched.folder / "finals" / finals.READY, finals.contest_of

    def begun_anew(*args):
        contest = original(*args)
        ready.write_text("the next race")
        return contest

    ready.parent.mkdir()
    ready.write_text("a race")
    monkeypatch.setattr(finals, "write_starts", lambda *args: None)
    finals.teach(searched.context, ready.parent, searched.context.recipe.finals)
    monkeypatch.setattr(finals, "contest_of", begun_anew)
    finals.assist(searched.folder)
    assert not (ready.parent / "trainings").exists()


def test_a_race_that_goes_on_keeps_its_name_and_another_has_another(searched, monkeypatch):
    names = []
    monkeypatch.setattr(Contest, "run", lambda *args: names.append(ready.read_text()) or 1 / 0)
    ready = searched.folder / "finals" / finals.READY
    for again in (False, False, True):
        if again:
            searched.forget("finals")
        with pytest.raises(ZeroDivisionError):
            searched.do("finals")
    assert names[0] == names[1] != names[2]


def test_finals_that_a_helper_still_trains_for_are_not_removed(searched):
    searched.do("finals")
    recipe = searched.context.recipe.model_copy(deep=True)
    recipe.finals.rates = [1.0]
    before = searched.view.result("finals")
    with claimed(searched.folder / "finals" / "trainings" / "lora" / ".lock"):
        for work in (lambda: searched.forget("finals"), lambda: Run.create(recipe, searched.folder)):
            with pytest.raises(UserError, match=r"^run: got .*; allowed: a run folder that no other process works in"):
                work()
    assert Run(searched.folder).view.result("finals") == before
    assert Run.create(Recipe.model_validate(recipe.model_dump()), searched.folder).view.done("finals") is None


FORKS = multiprocessing.get_context("fork")


def helper(pipe):
    workers._end_with_its_parent()
    pipe.send(os.getpid())
    time.sleep(60)


def first(pipe):
    FORKS.Process(target=helper, args=(pipe,)).start()
    time.sleep(60)


def test_a_helper_ends_with_the_process_that_started_it():
    told, pipe = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=first, args=(pipe,))
    process.start()
    started = psutil.Process(told.recv())
    process.kill()
    process.join()
    started.wait(30)
