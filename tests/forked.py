"""A launch whose processes are forks of the test's own, which has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState

_FORK = multiprocessing.get_context("fork")


class Forked(_FORK.Process):
    """A launcher of two processes on the CPU, which tells them what torchrun would.

    Args:
        work: what each does.
        folder: where it works; ``forked.txt`` there is what all of them print.
    """

    def __init__(self, work: Callable[[], None], folder: Path) -> None:
        super().__init__(target=self._launch, args=(work, folder, _free_port()))
        self.out = folder / "forked.txt"

    def _launch(self, work: Callable[[], None], folder: Path, port: int) -> None:
        os.chdir(folder)
        own = [_FORK.Process(target=self._work, args=(work, rank, port)) for rank in range(2)]
        for process in own:
            process.start()
        for process in own:
            process.join()
        sys.exit(max(abs(process.exitcode) for process in own))

    def _work(self, work: Callable[[], None], rank: int, port: int) -> None:
        with self.out.open("a") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # not pytest's
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        torch.set_num_threads(1)
        work()

    def poll(self) -> int | None:
        """As of a `subprocess.Popen`."""
        return self.exitcode

    @property
    def returncode(self) -> int | None:
        """As of a `subprocess.Popen`."""
        return self.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """As of a `subprocess.Popen`; what was printed is all in the first text."""
        self.join(timeout)
        return self.out.read_text(), ""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
