"""Further processes of this machine that work on the same search."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from glora_search.errors import UserError
from glora_search.files.disk import full_disk


@contextmanager
def helped_by(count: int, work: Callable[[], None]) -> Iterator[None]:
    """A block of work on a search, with so many more processes beside it.

    They share the machine's cores, and leave Ctrl-C to the first process, which ends them. One that dies is not
    replaced; what it evaluated is evaluated by another. They end with the search, and at the latest with the block.

    Args:
        count: how many.
        work: what each of them does; it is pickled, so a function of a module, or a ``functools.partial`` of one.
    """
    if count < 1:
        yield
        return
    before = torch.get_num_threads()
    threads = max(1, (os.cpu_count() or 1) // (count + 1))
    context = multiprocessing.get_context("spawn")
    helpers = [context.Process(target=_help, args=(work, threads), daemon=True) for _ in range(count)]
    with _ignoring_ctrl_c():  # what a process ignores, those that it starts ignore
        for helper in helpers:
            helper.start()
    torch.set_num_threads(threads)
    try:
        yield
        for helper in helpers:
            helper.join()
    finally:
        torch.set_num_threads(before)
        for helper in helpers:
            helper.terminate()


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


def _help(work: Callable[[], None], threads: int) -> None:
    _end_with_its_parent()
    warnings.filterwarnings("ignore")  # the first process shows them
    import transformers

    import glora_search.progress

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    glora_search.progress.console.quiet = True  # the first process shows the progress of all
    torch.set_num_threads(threads)
    try:
        work()
    except UserError as error:
        if full_disk(error, Path.cwd()) is None:  # of a full disk, the first process tells
            print(f"worker: {error}", file=sys.stderr)
        raise SystemExit(2) from None
