"""Where a search is kept: a journal that survives kills and full disks, and what a URL opens."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileOpenLock, JournalFileSymlinkLock
from sqlalchemy.exc import OperationalError

from glora_search.errors import UserError
from glora_search.search import Evaluation, open_storage, search
from glora_search.search.shared import storage as storage_module
from glora_search.search.shared.ledger import LOST_SECONDS
from glora_search.search.shared.storage import GRACE_SECONDS, JournalFile


def entry(number):
    """An operation, as far as a journal looks at one."""
    return {"op_code": 0, "worker_id": "w", "number": number}


def test_a_line_that_a_kill_cut_off_is_removed_and_the_search_goes_on(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    search(space, evaluator(), trials=10, storage=journal)
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"x","stu')
    made = evaluator()
    study = search(space, made, trials=14, storage=journal)
    assert len(made.genomes) == 4
    assert len(study.trials) == 14
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_line_that_another_worker_was_killed_in_is_removed_while_the_search_goes_on(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    made = evaluator()

    def evaluate(genome):
        if len(made.genomes) == 5:
            with journal.open("ab") as file:
                file.write(b'{"op_code":4,"half')
        return made(genome)

    study = search(space, evaluate, trials=12, storage=journal)
    assert len(study.trials) == 12
    assert all(json.loads(line) for line in journal.read_text().splitlines())


def test_a_line_that_is_damaged_elsewhere_is_named_and_nothing_is_written(space, evaluator, tmp_path):
    journal = tmp_path / "journal.log"
    search(space, evaluator(), trials=5, storage=journal)
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[3] = b"\x00\x00\x00\n"
    journal.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"journal\.log: line 4 is damaged"):
        search(space, evaluator(), trials=8, storage=journal)
    assert journal.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("how", ["removed", "moved", "cut"])
def test_a_journal_that_was_begun_anew_takes_no_trial_of_the_old_search(space, evaluator, tmp_path, how):
    folder = tmp_path / "search"
    journal, made, anew = folder / "journal.log", evaluator(), []

    def evaluate(genome):
        if len(made.genomes) == 3:
            if how == "cut":
                os.truncate(journal, journal.read_bytes().index(b"\n") + 1)
            else:
                shutil.rmtree(folder) if how == "removed" else folder.rename(tmp_path / "old")
                search(space, evaluator(), trials=2, storage=journal)
            anew.append(journal.read_bytes())
        return made(genome)

    with pytest.raises(UserError, match=r"journal\.log: the search was begun anew by another process"):
        search(space, evaluate, trials=8, storage=journal)
    assert [journal.read_bytes()] == anew
    assert len(made.genomes) == 4


def test_a_write_that_a_full_disk_cut_off_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    journal = JournalFile(tmp_path / "journal.log")
    journal.append_logs([entry(1)])
    original = storage_module.append

    def half(path, content, *, wait):
        original(path, content[: len(content) // 2], wait=wait)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage_module, "append", half)
    with pytest.raises(OSError, match="No space left"):
        journal.append_logs([entry(2), entry(3)])
    monkeypatch.undo()
    journal.append_logs([entry(4)])
    assert list(journal.read_logs(0)) == [entry(1), entry(4)]


def test_every_finished_trial_is_on_the_disk_and_claims_are_not_waited_for(space, evaluator, tmp_path, monkeypatch):
    synced, original = [], storage_module.append

    def note(path, content, *, wait):
        original(path, content, wait=wait)
        synced.extend((json.loads(line), wait) for line in content.splitlines())

    monkeypatch.setattr(storage_module, "append", note)
    search(space, evaluator(), trials=6, storage=tmp_path / "journal.log")
    finished = [wait for log, wait in synced if log["op_code"] == 4 and log["state"] == 1]
    claims = [wait for log, wait in synced if "claim" in log.get("user_attr", {})]
    assert finished == [True] * 6
    assert len(claims) >= 5
    assert not any(claims)


@pytest.fixture
def clock(monkeypatch):
    """Optuna's locks wait without waiting; how long they would have is counted."""
    passed = [0.0]

    def sleep(seconds):
        passed[0] += seconds

    time = types.SimpleNamespace(monotonic=lambda: passed[0], sleep=sleep)
    monkeypatch.setattr(sys.modules[JournalFileSymlinkLock.__module__], "time", time)
    return passed


@pytest.mark.parametrize("lock", [JournalFileSymlinkLock, JournalFileOpenLock])
def test_the_lock_of_a_killed_process_is_taken_away_after_the_grace_period(tmp_path, monkeypatch, clock, lock):
    monkeypatch.setattr(storage_module, "_LOCK", lock)
    path = tmp_path / "journal.log"
    ready = os.pipe()
    child = os.fork()
    if child == 0:
        with JournalFile(path)._locked():
            path.write_text(json.dumps(entry(0)) + '\n{"half')
            os.write(ready[1], b"x")
            signal.pause()
    os.read(ready[0], 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    journal = JournalFile(path)
    assert GRACE_SECONDS < clock[0] < GRACE_SECONDS + 3
    journal.append_logs([entry(1)])
    assert list(journal.read_logs(0)) == [entry(0), entry(1)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["journal.log"]


def test_who_waits_for_a_killed_processs_lock_is_not_taken_for_lost_itself():
    assert 3 <= GRACE_SECONDS <= LOST_SECONDS / 2


def test_a_lock_that_is_in_use_is_not_taken_away(tmp_path, clock):
    path, held = tmp_path / "journal.log", []
    journal, other = JournalFile(path), JournalFile(path)
    with journal._locked():
        held.append(path.with_name("journal.log.lock").is_symlink())
        sleep = sys.modules[JournalFileSymlinkLock.__module__].time.sleep

        def release(seconds):
            sleep(seconds)
            if clock[0] > GRACE_SECONDS - 2:
                journal._lock.release()

        sys.modules[JournalFileSymlinkLock.__module__].time.sleep = release
        other.append_logs([entry(1)])  # waits until it is released
        assert clock[0] < GRACE_SECONDS
    assert held == [True]  # and that the lock was gone at the end of its block is no error
    assert list(journal.read_logs(0)) == [entry(1)]


def test_a_journal_can_be_named_by_a_relative_path(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "journal.log"
    journal = open_storage("runs/journal.log")
    os.symlink(path, f"{path}.lock")  # left by a killed process
    optuna.create_study(storage=journal, study_name="found")
    assert GRACE_SECONDS < clock[0] < GRACE_SECONDS + 3
    assert not os.path.lexists(f"{path}.lock")


def test_storages_are_known_without_torch_and_without_the_drivers_that_are_not_used():
    code = (
        "import sys\n"
        "sys.orig_argv[1:3] = ['-m', 'glora_search']  # else the package imports its methods, for peft to know of\n"
        "from glora_search.search import trials\nfrom glora_search.search.shared import storage\n"
        "storage.storage_errors()\n"
        "print('heavy:', {'torch', 'transformers', 'peft', 'grpc', 'redis', 'sqlalchemy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "heavy: set()\n"


def test_a_journal_is_read_from_any_number_and_by_another_process_object(tmp_path):
    journal, other = JournalFile(tmp_path / "journal.log"), JournalFile(tmp_path / "journal.log")
    for number in range(5):
        (journal, other)[number % 2].append_logs([entry(number)])
    assert [log["number"] for log in journal.read_logs(0)] == [0, 1, 2, 3, 4]
    assert [log["number"] for log in journal.read_logs(3)] == [3, 4]
    assert [log["number"] for log in journal.read_logs(5)] == []
    other.append_logs([entry(5)])
    assert [log["number"] for log in journal.read_logs(5)] == [5]


def test_a_path_is_a_journal_a_url_a_database_and_a_storage_itself(tmp_path):
    assert isinstance(open_storage(tmp_path / "folder" / "journal.log"), JournalStorage)
    assert isinstance(open_storage(str(tmp_path / "journal.log")), JournalStorage)
    sqlite = open_storage(f"sqlite:///{tmp_path}/study.db")
    assert isinstance(getattr(sqlite, "_backend", sqlite), RDBStorage)
    mine = InMemoryStorage()
    assert open_storage(mine) is mine


@pytest.mark.parametrize(("message", "opens"), [("Table 'studies' already exists", True), ("no such host", False)])
def test_workers_that_find_an_empty_database_at_once_wait_for_the_one_that_makes_the_tables(
    message, opens, tmp_path, monkeypatch
):
    original, failures = RDBStorage.__init__, [OperationalError("create", {}, Exception(message))] * 2

    def init(self, *args, **kwargs):
        if failures:
            raise failures.pop()
        original(self, *args, **kwargs)

    monkeypatch.setattr(RDBStorage, "__init__", init)
    if opens:
        assert open_storage(f"sqlite:///{tmp_path}/study.db").get_all_studies() == []
    else:
        with pytest.raises(UserError, match=r"can be reached .*no such host"):
            open_storage(f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/study", ["storage", "ftp://host/study", "postgresql://", "grpc://host:port"]),
        ("postgresql://me:secret@127.0.0.1:1/study", ["storage", "postgresql://127.0.0.1/study", "can be reached"]),
    ],
)
def test_a_storage_that_cannot_be_opened_is_named_without_its_password(url, words):
    with pytest.raises(UserError) as error:
        open_storage(url)
    assert "secret" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "content", [b"my only copy", b'{"a": 1,\n "b": 2}', b"SQLite format 3\x00\x10\n\x00rest", b"\x00" * 100], ids=str
)
def test_a_file_of_another_kind_is_refused_and_stays_as_it_is(space, evaluator, tmp_path, content):
    path = tmp_path / "study.db"
    path.write_bytes(content)
    for where in (path, str(path)):
        with pytest.raises(
            UserError, match=r"^storage: got '.*study\.db'; allowed: a new file, or a journal; of a data"
        ):
            search(space, evaluator(), trials=2, storage=where)
        assert path.read_bytes() == content


@pytest.mark.parametrize("start", [b"", b'{"op', b'{"op_code":0,"worker_id":'])
def test_a_journal_whose_first_line_was_cut_off_is_begun_anew(space, evaluator, tmp_path, start):
    (tmp_path / "journal.log").write_bytes(start)
    assert len(search(space, evaluator(), trials=3, storage=tmp_path / "journal.log").trials) == 3


def test_a_place_where_no_file_can_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for where in (tmp_path, tmp_path / "file" / "journal.log"):
        with pytest.raises(UserError, match=r"^storage: got .*; allowed: a file that can be written"):
            open_storage(where)


@pytest.mark.parametrize("number", [np.float32(0.5), torch.tensor(0.5), 1], ids=repr)
def test_figures_of_any_kind_of_number_are_recorded(space, tmp_path, number):
    study = search(space, lambda genome: Evaluation(number, number), trials=2, storage=tmp_path / "journal.log")
    assert [trial.value for trial in study.trials] == [float(number)] * 2
    with pytest.raises(UserError, match=r"^evaluate: got "):
        search(space, lambda genome: Evaluation("much", 0.1), trials=2)
