"""Two processes on the CPU (gloo) against one with the summed batch; `test_launched_run` has real launchers."""

from __future__ import annotations

import functools
import json

import distributed_worker
import pytest
from forked import Forked

CASES = [
    "sizes",
    "sandwich gradient_accumulation_steps=2 gradient_checkpointing=true",  # several subnets a step
    "adapter",
]


def train(folder, batch):
    """Two processes do all trainings."""
    launch = Forked(functools.partial(distributed_worker.train_all, str(folder), batch, CASES), folder)
    launch.start()
    out, _ = launch.communicate(timeout=300)
    assert launch.returncode == 0, out[-3000:]


def found(folder, strategy, rank):
    return json.loads((folder / f"{strategy}-{rank}.json").read_text())


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_summed_batch(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    train(tmp_path / "two", "4")
    for case in CASES:
        strategy, *settings = case.split()
        distributed_worker.train(str(tmp_path / "one"), "8", strategy, *settings)
        one = found(tmp_path / "one", strategy, 0)
        first, second = (found(tmp_path / "two", strategy, rank) for rank in range(2))
        assert (one["processes"], first["processes"]) == (1, 2)
        assert first["drawn"] == second["drawn"] == one["drawn"]
        assert first["weights"] == second["weights"]
        assert len(one["losses"]) == 6
        assert first["losses"] == pytest.approx(one["losses"], abs=2e-4)
        assert first["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-5)
        assert first["eval_loss"] == pytest.approx(one["eval_loss"], abs=2e-4)
