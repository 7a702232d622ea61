"""Where a search is kept: a journal file, or whatever storage of Optuna's a URL names."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileOpenLock, JournalFileSymlinkLock

from glora_search.errors import UserError, invalid
from glora_search.files.disk import full_disk

SCHEMES = {
    "postgresql": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
}
"""Database schemes and the drivers that come with the package's extras."""

SET_TRIAL_USER_ATTR = 8
"""The operation of Optuna's journal that a worker makes its claims with (optuna 5.0.0)."""

BEGINNING = b'{"op_code":'
"""What each line of a journal begins with."""

GRACE_SECONDS = 10
"""How long a killed process's lock on a journal is waited for. A write on a busy disk can take some seconds, and must
not lose its lock; and whoever waits cannot show that it lives, for which it has a minute (`ledger.LOST_SECONDS`)."""

_LOCK = JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock

EXTRAS = {"psycopg": "postgresql", "pymysql": "mysql", "redis": "redis", "grpc": "grpc"}
"""Module -> the extra that installs it."""


def storage_errors() -> tuple[type[Exception], ...]:
    """What storages raise where they do not answer, or cannot be written; worth another try.

    A `RuntimeError` of Optuna's is a mistake in its use. What was not imported was raised by nobody.
    """
    found: list[type[Exception]] = [OSError, StorageInternalError]
    for module, name in (("grpc", "RpcError"), ("redis", "RedisError")):
        error = getattr(sys.modules.get(module), name, None)
        if error is not None:
            found.append(error)
    return tuple(found)


def open_storage(where: str | Path | BaseStorage) -> BaseStorage:
    """Open a storage.

    Args:
        where: a journal's file, made if it is not there; a URL: ``postgresql://``, ``mysql://``, ``sqlite://``,
            ``redis://``, or ``grpc://host:port`` of ``optuna.storages.run_grpc_proxy_server``; or an Optuna storage.

    Raises:
        UserError: no such kind of storage, its driver is not installed, or it cannot be reached.
    """
    if isinstance(where, BaseStorage):
        return where
    if isinstance(where, Path) or "://" not in where:
        try:
            return JournalStorage(JournalFile(Path(where)))
        except OSError as error:
            if full_disk(error, Path(where)) is not None:
                raise
            raise invalid("storage", shown(where), f"a file that can be written ({error.strerror})") from None
    parts = urlsplit(where)
    scheme, _, rest = where.partition("://")
    try:
        if scheme == "redis":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return JournalStorage(optuna.storages.journal.JournalRedisBackend(where))
        if scheme == "grpc":
            proxy = optuna.storages.GrpcStorageProxy(host=parts.hostname or "localhost", port=parts.port or 13000)
            proxy.wait_server_ready(timeout=30)
            return proxy
        if scheme.partition("+")[0] in (*SCHEMES, "sqlite"):
            url = f"{SCHEMES.get(scheme, scheme)}://{rest}"
            # A connection that a server's restart has cut is opened again.
            options = {} if scheme == "sqlite" else {"pool_pre_ping": True, "pool_recycle": 1800}
            return optuna.storages.get_storage(_database(url, options))
    except ImportError as error:
        extra = next((name for module, name in EXTRAS.items() if module in str(error).lower()), None)
        how = f"pip install 'glora-search[{extra}]'" if extra else str(error)
        raise invalid("storage", shown(where), f"a storage whose driver is installed: {how}") from None
    except Exception as error:
        reason = str(error.__cause__ or error).strip().split("\n")[0]
        raise invalid("storage", shown(where), f"a storage that can be reached ({reason})") from error
    allowed = "the file of a journal, or a URL: postgresql://, mysql://, sqlite:///, redis://, grpc://host:port"
    raise invalid("storage", shown(where), allowed)


def shown(where: str | Path | BaseStorage | None) -> str:
    """What a message calls a storage; of a URL, nothing but its kind, host and path: it can have a password."""
    if isinstance(where, BaseStorage):
        return type(where).__name__
    if not isinstance(where, str) or "://" not in where:
        return str(where)
    parts = urlsplit(where)
    return f"{where.partition('://')[0]}://{parts.hostname or ''}{parts.path}"


def _database(url: str, options: dict[str, Any]) -> optuna.storages.RDBStorage:
    """A database; of workers that find it empty at the same time, one makes the tables and the others try again."""
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    for attempt in range(10):
        try:
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
        except (IntegrityError, OperationalError, ProgrammingError) as error:
            # MySQL says of a table that another worker was faster to make what it says of a server that is not there.
            if attempt == 9 or (isinstance(error, OperationalError) and "already exists" not in str(error)):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError("unreachable")


class JournalFile(BaseJournalBackend):
    """A journal on a local or a shared disk: one JSON line an operation, on disk before the call returns.

    What a worker only claims is handed to the system and not waited for: a killed process loses none of it, and after
    a power cut there are no workers left whose claims could matter.

    Where the search was begun anew, the file is no longer the one that was read, and nothing is written there: what
    this process has belongs to another search.

    What a kill or a full disk has left of a line is removed before the next one is written. A line that is damaged
    anywhere else is named, and nothing is written behind it.

    The lock is Optuna's, a link beside the file, which works on any disk that several machines share; on Windows it is
    a file. It is held for a write, so some milliseconds. A process that is killed in one leaves the lock behind: the
    others wait for `GRACE_SECONDS`, then take it away.

    Args:
        path: the file; it is made if it is not there.

    Raises:
        UserError: it is a file of another kind, which stays as it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _check_kind(path)
        # The link must lead to the journal, by whose age Optuna tells for how long nobody has written.
        self._lock = _LOCK(str(path.resolve()), GRACE_SECONDS)
        self._begin()
        with self._locked():
            self._repair()

    def _begin(self) -> None:
        self._number, self._offset, self._first = 0, 0, b""

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The operations from a number on.

        Raises:
            UserError: a line is damaged, and the message names it; or this is no longer the file that was read.
        """
        with self.path.open("rb") as file:
            self._check_same(file)
            if log_number_from < self._number:
                self._number, self._offset = 0, 0
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # being written, or cut off by a kill: the next write removes it
                number = self._number
                try:
                    log = json.loads(line)
                    if not isinstance(log, dict) or not {"op_code", "worker_id"} <= log.keys():
                        raise ValueError
                except ValueError:
                    raise UserError(
                        f"{self.path}: line {number + 1} is damaged: {line[:60]!r}; remove it, or use another storage"
                    ) from None
                self._number, self._offset = number + 1, self._offset + len(line)
                self._first = self._first or line
                if number >= log_number_from:
                    yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations.

        Raises:
            OSError: they could not be written, by a full disk say; the file is as it was.
            UserError: this is no longer the file that was read.
        """
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        wait = any(log.get("op_code") != SET_TRIAL_USER_ATTR for log in logs)
        with self._locked():
            with self.path.open("rb") as file:
                self._check_same(file)
            self._repair()
            size = self.path.stat().st_size
            try:
                append(self.path, lines.encode(), wait=wait)
            except OSError:
                os.truncate(self.path, size)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            os.utime(self.path)  # so that others who wait for a dead one's lock see that it has been taken
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # this process stood still for so long that another took the lock
                self._lock.release()

    def _check_same(self, file: BinaryIO) -> None:
        """Refuse a file that is not the one that was read. A new file can have an old one's inode, but never its first
        line, which names the worker that wrote it."""
        if self._first and (file.readline() != self._first or os.fstat(file.fileno()).st_size < self._offset):
            raise UserError(f"{self.path}: the search was begun anew by another process")

    def _repair(self) -> None:
        """Remove what a killed process has left of a line at the file's end."""
        with self.path.open("r+b") as file:
            end = file.seek(0, os.SEEK_END)
            start = end
            while start:
                step = min(start, 1 << 16)
                start -= step
                file.seek(start)
                newline = file.read(step).rfind(b"\n")
                if newline >= 0:
                    start += newline + 1
                    break
            if start < end:
                file.truncate(start)


class JournalReader(JournalFile):
    """A journal that is only looked at, while others may write it: nothing is made, repaired or changed.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse.

        Raises:
            OSError: always.
        """
        raise OSError(errno.EROFS, "the search can be looked at here, not changed", str(self.path))


def _check_kind(path: Path) -> None:
    """Refuse a file that is no journal, such as a database whose URL was meant; a journal's first line may be cut off
    by a kill, or damaged in its middle."""
    with path.open("rb") as file:
        start = file.read(len(BEGINNING))
    if not BEGINNING.startswith(start):
        allowed = "a new file, or a journal; of a database, its URL, such as sqlite:///study.db"
        raise invalid("storage", str(path), allowed)


def append(path: Path, content: bytes, *, wait: bool) -> None:
    """Append to a file; wait until it is on the disk, or only until the system has it."""
    with path.open("ab", buffering=0) as file:
        written = 0
        while written < len(content):
            written += file.write(content[written:]) or 0
        if wait:
            os.fsync(file.fileno())
