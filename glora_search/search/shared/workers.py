"""Further processes of this machine that work on the same search."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from glora_search.errors import UserError
from glora_search.files.disk import full_disk
from glora_search.progress import console
from glora_search.silence import silence_imports, silence_libraries


@contextmanager
def helped_by(count: int, work: str, *given: Any, **options: Any) -> Iterator[None]:
    """A block of work on a search, with so many more processes beside it.

    They share the machine's cores, and leave Ctrl-C to the first process, which ends them. One that dies is not
    replaced; what it evaluated is evaluated by another. They end with the search, and at the latest with the block.

    Args:
        count: how many.
        work: the function that each of them calls, as ``package.module:function``. A helper imports it only once
            libraries are silent.
        given, options: what the function is called with.
    """
    if count < 1:
        yield
        return
    before = torch.get_num_threads()
    threads = max(1, (os.cpu_count() or 1) // (count + 1))
    context = multiprocessing.get_context("spawn")
    helpers: list[SpawnProcess] = []
    try:
        with _ignoring_ctrl_c():  # what a process ignores, those that it starts ignore
            for _ in range(count):
                # Daemons may have no processes of their own, as those that load a training's batches.
                helper = context.Process(target=_help, args=(threads, work, given, options))
                helper.start()
                helpers.append(helper)
        torch.set_num_threads(threads)
        yield
        for helper in helpers:
            helper.join()
    finally:
        torch.set_num_threads(before)
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.join()


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody choose
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_its_parent() -> None:
    """A process that is killed does not end those that it has started; they would go on, and hold what others need."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _help(threads: int, work: str, given: Sequence[Any], options: Mapping[str, Any]) -> None:
    _end_with_its_parent()
    warnings.filterwarnings("ignore")  # the first process shows them, and the progress of all
    console.quiet = True
    silence_imports()
    silence_libraries()
    torch.set_num_threads(threads)
    try:
        pkgutil.resolve_name(work)(*given, **options)
    except UserError as error:
        if full_disk(error, Path.cwd()) is None:  # of a full disk, the first process tells
            print(f"worker: {error}", file=sys.stderr)
        raise SystemExit(2) from None
