"""The durable record of a search, shared by its workers: finished trials, and who evaluates what.

Two studies of one storage. The search's own holds finished trials alone, each written at once with its parameters.
Beside it, ``<name>.workers`` has one trial a worker, running as long as the worker lives, with the key of the genome
that it evaluates: its claim. So a killed worker leaves nothing in the search's study.

A genome is evaluated once: a worker writes its claim, then reads the claims of the others, then the finished trials.
Of two that claim the same at the same time, at least one sees the other and steps back. A claim ends where its worker
does, or with the finished trial.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from glora_search.compat import study_id, trial_id
from glora_search.errors import invalid
from glora_search.search.shared.storage import open_storage, shown
from glora_search.search.trials import PARAMS

BUDGET = "max_params"
"""The setting that is the search's budget."""
CLAIM = "claim"
PLACE = "place"
BEAT = "beat"
BEAT_SECONDS = 10.0
"""How often a worker shows that it lives, while it evaluates."""
TOKEN = "token"
_OWN: set[str] = set()
"""The tokens of this process's workers that have not left. A record of this process that has none of them is of one
whose end could not be written."""
LOST_SECONDS = 60.0
"""A worker of another machine that has not shown so for this long is taken for dead: several beats must fail."""


class Ledger:
    """A search's studies in a storage, and this process as one of its workers.

    Args:
        storage: see `open_storage`; None keeps the study in this process's memory alone.
        name: of the study.
        directions: of the study's values.
        settings: what the study belongs to; a storage with another's study of this name is refused. None is a value
            like any other: trials without a budget are not those of a search with one.

    Attributes:
        in_doubt: whether, when claims were read last, one was of another machine's worker that has not shown yet that
            it lives: it may have been killed.

    Raises:
        UserError: the storage cannot be used, or holds another search under this name.
    """

    def __init__(
        self,
        storage: str | Path | BaseStorage | None,
        *,
        name: str,
        directions: list[StudyDirection],
        settings: Mapping[str, Any],
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.shown = shown(storage)
        self.storage = optuna.storages.InMemoryStorage() if storage is None else open_storage(storage)
        self.study = self._open(name, directions)
        found = self.study.directions
        if found != directions:
            raise self._other("directions", [d.name.lower() for d in found], [d.name.lower() for d in directions])
        self._settle(settings)
        self._read = 0
        self._beats = 0
        self._claims: dict[int, tuple[Any, float, bool]] = {}
        self._token = uuid.uuid4().hex
        self._worker: int | None = None
        self._workers: int | None = None
        self.in_doubt = False
        if storage is not None:
            self._workers = study_id(self._open(f"{name}.workers", [StudyDirection.MINIMIZE]))

    def _open(self, name: str, directions: list[StudyDirection]) -> optuna.Study:
        try:
            return optuna.load_study(study_name=name, storage=self.storage)
        except KeyError:
            # Another worker may have made it in the meantime.
            names = [direction.name.lower() for direction in directions]
            return optuna.create_study(study_name=name, storage=self.storage, directions=names, load_if_exists=True)

    def _settle(self, settings: Mapping[str, Any]) -> None:
        """Compare the settings with those of the study, and record what it has not.

        A study that an earlier version wrote has trials, and no word of some of the settings. It goes on unless its
        trials contradict: one is over the budget. What cannot be told from them (weights, say) is believed, and holds
        from then on.
        """
        recorded = self.study.user_attrs
        for key, value in settings.items():
            if key in recorded and recorded[key] != value:
                raise self._other(key, recorded[key], value)
        missing = settings.keys() - recorded.keys()
        budget = settings.get(BUDGET) if BUDGET in missing else None
        if budget is not None:
            largest = max((t.user_attrs.get(PARAMS, 0) for t in self.study.get_trials(deepcopy=False)), default=0)
            if largest > budget:
                raise invalid(
                    "storage",
                    self.shown,
                    f"one of the same search: {BUDGET} is {budget} here, and it has a trial of {largest} parameters",
                )
        for key in sorted(missing):
            self.study.set_user_attr(key, settings[key])

    def _other(self, key: str, before: Any, value: Any) -> Exception:
        return invalid("storage", self.shown, f"one of the same search: {key} is {value!r} here and was {before!r}")

    # -- finished trials -------------------------------------------------------------------------------------------

    def new_trials(self) -> list[FrozenTrial]:
        """The trials that have finished since the last call, by any worker."""
        trials = self.study.get_trials(deepcopy=False)
        found, self._read = trials[self._read :], len(trials)
        return found

    def append(self, trial: FrozenTrial) -> None:
        """Write a finished trial."""
        self.storage.create_new_trial(study_id(self.study), trial)

    # -- claims ----------------------------------------------------------------------------------------------------

    def claim(self, key: str) -> set[str]:
        """Say that this worker is about to evaluate a genome.

        Returns:
            The keys that other living workers claim. If ``key`` is among them, this worker must step back; read the
            finished trials after this call, not before, to know whether a claim has ended well.
        """
        if self._workers is None:
            return set()
        if self._worker is not None:
            try:
                self.storage.set_trial_user_attr(self._worker, CLAIM, key)
                return self.claims()
            except (UpdateFinishedTrialError, RuntimeError):
                pass  # taken for dead after a long silence: join anew
        attributes = {PLACE: _place(), TOKEN: self._token, CLAIM: key, BEAT: 0}
        template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        self._worker = self.storage.create_new_trial(self._workers, template)
        _OWN.add(self._token)
        return self.claims()

    def claims(self) -> set[str]:
        """The keys that other living workers claim; some may have finished since."""
        if self._workers is None:
            return set()
        running = self.storage.get_all_trials(self._workers, deepcopy=False, states=(TrialState.RUNNING,))
        others = [trial for trial in running if trial_id(trial) != self._worker and trial.user_attrs.get(CLAIM)]
        living = [trial for trial in others if self._lives(trial)]
        self.in_doubt = any(not self._claims.get(trial_id(trial), (None, 0, True))[2] for trial in living)
        return {str(trial.user_attrs[CLAIM]) for trial in living}

    def holds(self) -> bool:
        """Whether this worker counts as alive; one that was silent for too long may have lost its claim."""
        if self._worker is None:
            return self._workers is None
        return self.storage.get_trial(self._worker).state == TrialState.RUNNING

    def release(self) -> None:
        """Give the claim back without a result."""
        if self._worker is not None and self.holds():
            self.storage.set_trial_user_attr(self._worker, CLAIM, "")

    def leave(self) -> None:
        """This worker ends."""
        if self._worker is not None:
            _OWN.discard(self._token)
            self._end(self._worker, TrialState.COMPLETE)
            self._worker = None

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """A block in which this worker shows, from time to time, that it lives."""
        if self._worker is None:
            yield
            return
        end = threading.Event()
        heart = threading.Thread(target=self._beat, args=(self._worker, end), daemon=True)
        heart.start()
        try:
            yield
        finally:
            end.set()
            heart.join()

    def _beat(self, worker: int, end: threading.Event) -> None:
        while not end.wait(BEAT_SECONDS):
            self._beats += 1
            # A beat that fails is followed by others: only a minute without any is taken for a death.
            with contextlib.suppress(Exception):
                self.storage.set_trial_user_attr(worker, BEAT, self._beats)

    def _lives(self, worker: FrozenTrial) -> bool:
        machine, pid, started = worker.user_attrs[PLACE]
        if worker.user_attrs[PLACE] == _place():
            alive = worker.user_attrs.get(TOKEN) in _OWN
        elif machine == _place()[0]:
            alive = _started(pid) == started
        else:
            sign, now = (worker.user_attrs[BEAT], worker.user_attrs[CLAIM]), time.monotonic()
            last, since, _ = self._claims.setdefault(trial_id(worker), (sign, now, False))
            if last != sign:
                self._claims[trial_id(worker)] = (sign, now, True)
            alive = last != sign or now - since < LOST_SECONDS
        if not alive:
            self._end(trial_id(worker), TrialState.FAIL)
        return alive

    def _end(self, worker: int, state: TrialState) -> None:
        values = [0.0] if state == TrialState.COMPLETE else None
        with contextlib.suppress(UpdateFinishedTrialError, RuntimeError):  # another worker was faster
            self.storage.set_trial_state_values(worker, state, values)


def _place() -> list[Any]:
    """This process: its machine (this boot, this process namespace), its number, and when it started."""
    pid = os.getpid()
    return [_machine(), pid, _started(pid)]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux: workers of this machine are watched like those of others
        return f"{platform.node()} {os.getpid()}"


def _started(pid: int) -> str:
    """When a process of this machine started, in ticks of its clock; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]
