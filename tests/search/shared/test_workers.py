"""The search command with several processes: on one machine, joined later, and with a database."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import sys

import pandas as pd
import pytest
from torch.utils.data import DataLoader

from glora_search import cli, progress
from glora_search.errors import UserError
from glora_search.recipe.schema import Recipe
from glora_search.run.runner import Run
from glora_search.run.search import forget_shared_search
from glora_search.search import SubnetEvaluator, open_storage
from glora_search.search.shared import workers

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tiny_recipe, tmp_path):
    """A run folder whose supernet is trained."""
    made = Run.create(Recipe.model_validate(tiny_recipe), tmp_path / "run")
    made.do("supernet")
    return made


def check(run):
    """The stage is done, each of the 12 trials once."""
    trials = pd.read_csv(run.folder / "search" / "trials.csv")
    assert len(trials) == trials["user_attrs_key"].nunique() == 12
    assert run.view.done("search")["evaluated"] == 12


def test_the_search_command_starts_further_workers(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["glora-search", "search", str(run.folder), "--workers", "2"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    assert "evaluated 12" in capsys.readouterr().out.replace("\n", " ")
    check(run)


def test_the_same_command_elsewhere_joins_a_search_that_is_going_on(run, monkeypatch):
    original, calls = SubnetEvaluator.__call__, []
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:  # evaluates two, and waits in the third for the other process

        def slow(self, genome):
            calls.append(genome)
            if len(calls) == 3:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
            return original(self, genome)

        SubnetEvaluator.__call__ = slow
        Run(run.folder).do("search")
        os._exit(0)

    def counted(self, genome):
        calls.append(genome)
        if len(calls) == 9:  # all that the first process has not taken
            os.write(go[1], b"x")
        return original(self, genome)

    monkeypatch.setattr(SubnetEvaluator, "__call__", counted)
    os.read(ready[0], 1)
    Run(run.folder).do("search")
    assert os.waitpid(child, 0)[1] == 0
    assert len(calls) == 9
    check(run)


def test_who_helped_a_search_is_done_with_it_while_the_first_process_goes_on_to_the_next_stage(run, monkeypatch):
    original, calls = SubnetEvaluator.__call__, []
    ready, go, end = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:

        def slow(self, genome):
            calls.append(genome)
            if len(calls) == 3:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
            return original(self, genome)

        SubnetEvaluator.__call__ = slow
        first = Run(run.folder)
        first.do("search")
        with first.working():  # at the next stage
            os.write(ready[1], b"x")
            os.read(end[0], 1)
        os._exit(0)

    def counted(self, genome):
        calls.append(genome)
        if len(calls) == 9:
            os.write(go[1], b"x")
        return original(self, genome)

    monkeypatch.setattr(SubnetEvaluator, "__call__", counted)
    join = Run._join

    def late(self, stage, options):
        join(self, stage, options)
        os.read(ready[0], 1)  # the first process has the lock again

    monkeypatch.setattr(Run, "_join", late)
    os.read(ready[0], 1)
    assert Run(run.folder).do("search")["evaluated"] == 12
    os.write(end[1], b"x")
    assert os.waitpid(child, 0)[1] == 0


def test_a_search_whose_first_process_was_killed_is_finished_by_the_one_that_joined(run, monkeypatch):
    original, calls = SubnetEvaluator.__call__, []
    ready = os.pipe()
    child = os.fork()
    if child == 0:

        def stuck(self, genome):
            calls.append(genome)
            if len(calls) == 3:
                os.write(ready[1], b"x")
                signal.pause()
            return original(self, genome)

        SubnetEvaluator.__call__ = stuck
        Run(run.folder).do("search")
        os._exit(0)

    def counted(self, genome):
        calls.append(genome)
        if len(calls) == 5:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return original(self, genome)

    monkeypatch.setattr(SubnetEvaluator, "__call__", counted)
    os.read(ready[0], 1)
    Run(run.folder).do("search")
    assert len(calls) == 10
    check(run)


def test_a_search_in_a_shared_storage_has_a_name_of_its_own_and_can_be_done_again(run, tmp_path, monkeypatch):
    storage = f"sqlite:///{tmp_path}/shared.db"
    original, calls = SubnetEvaluator.__call__, []

    def counted(self, genome):
        calls.append(genome)
        return original(self, genome)

    monkeypatch.setattr(SubnetEvaluator, "__call__", counted)
    run.do("search", storage=storage)
    check(run)
    names = {study.study_name for study in open_storage(storage).get_all_studies()}
    assert len(names) == 2
    assert all(name.startswith("tiny-") for name in names)
    for again in (False, True):
        run.forget("search")
        if again:
            forget_shared_search(run.view, storage)
        run.do("search", storage=storage)
        assert len(calls) == (24 if again else 12)
        check(run)


@pytest.mark.parametrize(
    ("settings", "better"),
    [
        ({"objective": "front", "sampler": "nsga2", "options": {}}, "validation_loss"),
        ({"score": "metric", "sampler": "paper", "options": {}}, "validation"),
        ({"racing": True, "sampler": "optuna.samplers.QMCSampler", "options": {}}, "validation_loss"),
    ],
)
def test_every_way_of_searching_leaves_a_subnet_to_export(tiny_recipe, tmp_path, settings, better):
    data = {**tiny_recipe, "search": {**tiny_recipe["search"], **settings}}
    run = Run.create(Recipe.model_validate(data), tmp_path / "run")
    run.do("supernet")
    found = run.do("search")
    trials = pd.read_csv(run.folder / "search" / "trials.csv")
    assert len(trials) == 12
    assert trials["user_attrs_params"].max() <= 1000
    best = found["best"]
    if better == "validation":
        assert best["validation"] == trials["value"].max()
    else:
        assert best["validation_loss"] == pytest.approx(trials["user_attrs_loss"].min())
    if settings.get("objective") == "front":
        losses = [point["validation_loss"] for point in found["front"]]
        sizes = [point["params"] for point in found["front"]]
        assert losses == sorted(losses, reverse=True)
        assert sizes == sorted(set(sizes))
    assert run.do("best")["params"] == best["params"]


def asked_to_fail(cause):
    raise UserError("search: the storage cannot be used") from cause


@pytest.mark.parametrize(("cause", "said"), [(OSError(errno.ENOSPC, "No space left on device"), False), (None, True)])
def test_a_helper_that_cannot_go_on_ends_without_a_traceback(monkeypatch, capsys, cause, said):
    monkeypatch.setattr(progress.console, "quiet", False)  # which it is not afterwards
    with pytest.raises(SystemExit, match="2"):
        workers._help(1, f"{__name__}:asked_to_fail", (cause,), {})
    assert capsys.readouterr().err == ("worker: search: the storage cannot be used\n" if said else "")


def load_batches(path):
    path.write_text(str(list(DataLoader([1, 2, 3, 4], batch_size=2, num_workers=1))))


def test_a_helper_can_load_batches_by_processes_of_its_own(tmp_path):
    with workers.helped_by(1, f"{__name__}:load_batches", tmp_path / "batches"):
        pass
    assert (tmp_path / "batches").read_text() == "[tensor([1, 2]), tensor([3, 4])]"


def test_no_helper_is_left_by_a_block_that_ctrl_c_ends():
    block = workers.helped_by(2, "time:sleep", 60)
    block.__enter__()
    assert len(multiprocessing.active_children()) == 2
    assert not block.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not multiprocessing.active_children()
