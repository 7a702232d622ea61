"""Who evaluates what: claims, and how they end."""

from __future__ import annotations

import os
import signal

import pytest
from optuna.study import StudyDirection
from optuna.trial import TrialState

from glora_search.search.shared import ledger as ledger_module
from glora_search.search.shared.ledger import Ledger


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
    far.storage.set_trial_user_attr(far._worker, ledger_module.BEAT, 1)
    monkeypatch.setattr(ledger_module, "LOST_SECONDS", 0.0)
    assert near.claims() == {"a"}  # it has shown that it lives
    assert near.claims() == set()
    assert not far.holds()
    monkeypatch.setattr(ledger_module, "LOST_SECONDS", 60.0)
    assert far.claim("b") == set()  # it was alive after all, and joins anew
    assert far.holds()
    assert near.claims() == set() or near.claims() == {"b"}


def test_a_worker_shows_that_it_lives_while_it_evaluates(join, monkeypatch):
    monkeypatch.setattr(ledger_module, "BEAT_SECONDS", 0.001)
    worker = join()
    worker.claim("a")
    with worker.beating():
        while not worker.storage.get_trial(worker._worker).user_attrs[ledger_module.BEAT]:
            pass
