"""Who evaluates what: claims, and how they end."""

from __future__ import annotations

import errno
import os
import signal
import threading
import types
from pathlib import Path

import pytest
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from glora_search.errors import UserError
from glora_search.search import search
from glora_search.search.shared import ledger as ledger_module
from glora_search.search.shared import storage as storage_module
from glora_search.search.shared.ledger import Ledger
from glora_search.search.trials import KEY, STUDY_NAME


@pytest.fixture
def join(tmp_path):
    """``join()``: another worker of the same search."""
    return lambda: Ledger(
        tmp_path / "journal.log", name="search", directions=[StudyDirection.MAXIMIZE], settings={"space": "one"}
    )


def states(ledger):
    return [trial.state for trial in ledger.storage.get_all_trials(ledger._workers)]


def test_a_claim_is_seen_by_the_others_and_ends_with_its_worker(join):
    first, second = join(), join()
    assert first.claim("a") == set()
    assert second.claim("b") == {"a"}
    assert first.claims() == {"b"}
    first.leave()
    assert second.claims() == set()
    second.release()
    assert join().claims() == set()
    assert states(second) == [TrialState.COMPLETE, TrialState.RUNNING]


def test_a_storage_of_another_search_is_named_without_its_password(monkeypatch):
    storage = InMemoryStorage()
    monkeypatch.setattr(ledger_module, "open_storage", lambda where: storage)
    url, options = "postgresql://me:secret@host/study", {"name": "search", "directions": [StudyDirection.MAXIMIZE]}
    Ledger(url, **options, settings={"space": "one"})
    with pytest.raises(UserError, match=r"^storage: got 'postgresql://host/study'; .* space is 'two' here") as error:
        Ledger(url, **options, settings={"space": "two"})
    assert "secret" not in str(error.value)


def test_of_two_that_claim_the_same_at_least_one_sees_the_other(join):
    first, second = join(), join()
    assert first.claim("a") == set()
    assert "a" in second.claim("a")


def test_the_claim_of_a_killed_process_ends_at_once(join):
    child = os.fork()
    if child == 0:
        join().claim("a")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    other = join()
    assert other.claims() == set()
    assert states(other) == [TrialState.FAIL]


def test_a_worker_of_another_machine_that_is_silent_for_long_is_taken_for_dead(join, monkeypatch):
    place = ledger_module._place()
    monkeypatch.setattr(ledger_module, "_place", lambda: ["another machine", 1, "5"])
    far = join()
    far.claim("a")
    monkeypatch.setattr(ledger_module, "_place", lambda: place)
    near = join()
    assert near.claims() == {"a"}
    assert near.in_doubt
    far.storage.set_trial_user_attr(far._worker, ledger_module.BEAT, 1)
    monkeypatch.setattr(ledger_module, "LOST_SECONDS", 0.0)
    assert near.claims() == {"a"}  # it has shown that it lives
    assert not near.in_doubt
    assert near.claims() == set()
    assert not far.holds()
    monkeypatch.setattr(ledger_module, "LOST_SECONDS", 60.0)
    assert far.claim("b") == set()  # it was alive after all, and joins anew
    assert far.holds()
    assert near.claims() == set() or near.claims() == {"b"}


def test_a_search_that_goes_on_waits_until_it_knows_whether_another_machines_worker_lives(
    space, evaluator, tmp_path, monkeypatch
):
    settings, log = {"trials": 24, "max_params": 90, "seed": 2}, tmp_path / "journal.log"
    whole = search(space, evaluator(), **settings)
    with pytest.raises(KeyboardInterrupt):
        search(space, evaluator(stop_after=20), storage=log, **settings)
    place = ledger_module._place()
    monkeypatch.setattr(ledger_module, "_place", lambda: ["another machine", 1, "5"])
    killed = Ledger(log, name=STUDY_NAME, directions=[StudyDirection.MINIMIZE], settings={})
    killed.claim(whole.trials[20].user_attrs[KEY])
    monkeypatch.setattr(ledger_module, "_place", lambda: place)
    monkeypatch.setattr(ledger_module, "LOST_SECONDS", 0.3)
    study = search(space, evaluator(), storage=log, **settings)
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]


@pytest.fixture
def far_and_near(join, monkeypatch):
    """A worker of another machine that claims "a", one of this machine, and a clock that is set by hand."""
    clock = types.SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ledger_module, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    place = ledger_module._place()
    monkeypatch.setattr(ledger_module, "_place", lambda: ["another machine", 1, "5"])
    far = join()
    far.claim("a")
    monkeypatch.setattr(ledger_module, "_place", lambda: place)
    return far, join(), clock


def test_a_worker_is_lost_only_after_a_minute_of_silence(far_and_near):
    far, near, clock = far_and_near
    for beats in range(1, 4):  # all but one of the beats in between have failed
        far.storage.set_trial_user_attr(far._worker, ledger_module.BEAT, beats)
        for _ in range(2):
            assert near.claims() == {"a"}
            clock.now += ledger_module.LOST_SECONDS - 1
            assert near.claims() == {"a"}
            far.storage.set_trial_user_attr(far._worker, ledger_module.BEAT, beats + 0.5)
    assert near.claims() == {"a"}
    clock.now += ledger_module.LOST_SECONDS
    assert near.claims() == set()
    assert not far.holds()


def test_a_beat_that_fails_is_followed_by_others_as_long_as_the_evaluation_takes(join, monkeypatch):
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.001)
    worker, tries, shown = join(), [], threading.Event()
    worker.claim("a")
    original = worker.storage.set_trial_user_attr

    def failing(*arguments):
        tries.append(arguments)
        if len(tries) < 4:
            raise OSError("the storage does not answer")
        original(*arguments)
        shown.set()

    monkeypatch.setattr(worker.storage, "set_trial_user_attr", failing)
    with worker.beating():
        assert shown.wait(30)
    assert worker.storage.get_trial(worker._worker).user_attrs[ledger_module.BEAT] >= 4
    assert worker.holds()


def test_beats_of_two_evaluations_are_never_the_same(join, monkeypatch):
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.001)
    worker, beats = join(), [0]
    for key in ("a", "b"):
        worker.claim(key)
        with worker.beating():
            while beats[-1] == worker.storage.get_trial(worker._worker).user_attrs[ledger_module.BEAT]:
                pass
        beats.append(worker.storage.get_trial(worker._worker).user_attrs[ledger_module.BEAT])
    assert beats == sorted(set(beats))


def test_a_machine_without_proc_and_uname_has_a_name(monkeypatch):
    def missing(self):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.delattr(os, "uname")
    machine, pid, started = ledger_module._place()
    assert machine.endswith(f" {os.getpid()}")
    assert (pid, started) == (os.getpid(), "")


def test_what_is_recorded_as_none_is_recorded(tmp_path):
    def join(**settings):
        directions = [StudyDirection.MAXIMIZE]
        return Ledger(tmp_path / "journal.log", name="search", directions=directions, settings=settings)

    join(max_params=None)
    assert join(max_params=None, weights="one").study.user_attrs == {"max_params": None, "weights": "one"}
    with pytest.raises(UserError, match="max_params is 3 here and was None"):
        join(max_params=3)


def test_a_worker_shows_that_it_lives_while_it_evaluates(join, monkeypatch):
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.001)
    worker = join()
    worker.claim("a")
    with worker.beating():
        while not worker.storage.get_trial(worker._worker).user_attrs[ledger_module.BEAT]:
            pass


def test_a_search_goes_on_in_the_process_whose_claim_could_not_be_given_back(space, evaluator, tmp_path, monkeypatch):
    original, made = storage_module.append, evaluator()

    def full(path, content, *, wait):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def evaluate(genome):
        if len(made.genomes) == 3:
            monkeypatch.setattr(storage_module, "append", full)
        return made(genome)

    with pytest.raises(OSError, match="No space left"):
        search(space, evaluate, trials=8, storage=tmp_path / "journal.log")
    monkeypatch.setattr(storage_module, "append", original)
    assert len(search(space, evaluator(), trials=8, storage=tmp_path / "journal.log").trials) == 8
