"""Two processes on the CPU (gloo) against one with the summed batch; `test_launched_run` has another launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest

WORKER = Path(distributed_worker.__file__)
ROOT = Path(__file__).parent.parent.parent
TORCHRUN = "torch.distributed.run --standalone --nproc_per_node=2"
CASES = [
    "sizes",
    "sandwich gradient_accumulation_steps=2 gradient_checkpointing=true",  # several subnets a step
    "adapter",
]


def train(folder, batch):
    """Two processes do all trainings."""
    command = [sys.executable, "-m", *TORCHRUN.split(), str(WORKER), str(folder), batch]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command += " + ".join(CASES).split()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


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
