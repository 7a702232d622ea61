"""Several workers on one search: through a journal, a real PostgreSQL server, and Optuna's gRPC proxy before it."""

from __future__ import annotations

import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from glora_search.search import Evaluation, open_storage, search
from glora_search.search.trials import KEY
from glora_search.space.codes import key_of

pytestmark = pytest.mark.slow


CONTEXT = multiprocessing.get_context("fork")
TRIALS = 30


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def postgresql():
    """The URL of a PostgreSQL server of this test's own, on loopback in a temporary folder."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="glora-search-"))
    # The server refuses to run as root.
    user = "postgres" if os.getuid() == 0 and "postgres" in [u.pw_name for u in pwd.getpwall()] else "nobody"
    options = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    if options:
        shutil.chown(folder, user)
    port = free_port()

    def call(*arguments):
        subprocess.run([*arguments], check=True, stdout=subprocess.DEVNULL, cwd=folder, **options)

    data, pg_ctl = folder / "data", programs[-1]
    call(pg_ctl.with_name("initdb"), "-D", data, "-U", "tester", "-A", "trust", "-N")
    settings = f"-h 127.0.0.1 -p {port} -k {folder} -F"
    call(pg_ctl, "-D", data, "-l", folder / "log", "-o", settings, "-w", "start")
    try:
        yield f"postgresql://tester@127.0.0.1:{port}/postgres"
    finally:
        call(pg_ctl, "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def proxy(postgresql):
    """The URL of Optuna's gRPC storage proxy, before the PostgreSQL server."""
    pytest.importorskip("grpc", reason="grpcio is not installed")
    port = free_port()

    def serve():
        optuna.storages.run_grpc_proxy_server(open_storage(postgresql), host="127.0.0.1", port=port)

    server = CONTEXT.Process(target=serve, daemon=True)
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.kill()
    server.join()


def work(space, storage, name, log, go, kill_after=None):
    """A worker that notes each key that it is asked to evaluate; one that is not killed waits for those that are."""
    codec, done = space.codec, 0

    def evaluate(genome):
        nonlocal done
        with log.open("a") as file:
            file.write(f"{key_of(codec.encode(genome))}\n")
        done += 1
        if kill_after is None:
            assert go.wait(60)
        elif done == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return Evaluation(metric=space.params(genome) / 1000, loss=1.0)

    search(space, evaluate, trials=TRIALS, max_params=90, storage=storage, study_name=name)


def run_workers(space, storage, name, log, workers, killed=0):
    go = CONTEXT.Event()
    processes = [
        CONTEXT.Process(target=work, args=(space, storage, name, log, go, 3 if number < killed else None))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes[:killed]:  # the others could finish the search before these reach their end
        process.join()
    go.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * killed + [0] * (workers - killed)


def check(study_storage, name, log, killed=0):
    """Every trial finished, no genome evaluated twice, nothing left behind."""
    storage = open_storage(study_storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    assert len(trials) == TRIALS
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len({trial.user_attrs[KEY] for trial in trials}) == TRIALS
    evaluated = Counter(log.read_text().split())
    # What a killed worker was at is evaluated by another, at most once more.
    assert sum(evaluated.values()) <= TRIALS + killed
    assert sum(count - 1 for count in evaluated.values()) <= killed
    workers = optuna.load_study(study_name=f"{name}.workers", storage=storage).trials
    assert not [trial for trial in workers if trial.state == TrialState.RUNNING]


@pytest.mark.parametrize("killed", [0, 2])
def test_workers_share_a_journal(space, tmp_path, killed):
    journal, log = tmp_path / "journal.log", tmp_path / "evaluated"
    run_workers(space, journal, "search", log, workers=4, killed=killed)
    check(journal, "search", log, killed)


@pytest.mark.parametrize("killed", [0, 2])
def test_workers_share_a_postgresql_database(space, postgresql, tmp_path, killed):
    log = tmp_path / "evaluated"
    run_workers(space, postgresql, f"shared-{killed}", log, workers=4, killed=killed)
    check(postgresql, f"shared-{killed}", log, killed)


def test_8_workers_share_a_database_through_the_grpc_proxy(space, postgresql, proxy, tmp_path):
    log = tmp_path / "evaluated"
    run_workers(space, proxy, "proxied", log, workers=8)
    check(postgresql, "proxied", log)


def test_a_search_in_a_database_goes_on_as_one_that_never_stopped(space, evaluator, postgresql):
    settings = {"trials": 25, "max_params": 90, "seed": 2}
    whole = search(space, evaluator(), **settings)
    with pytest.raises(KeyboardInterrupt):
        search(space, evaluator(stop_after=15), storage=postgresql, study_name="stopped", **settings)
    made = evaluator()
    study = search(space, made, storage=postgresql, study_name="stopped", **settings)
    assert len(made.genomes) == 10
    assert [trial.params for trial in study.trials] == [trial.params for trial in whole.trials]
