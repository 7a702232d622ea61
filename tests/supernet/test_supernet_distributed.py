"""Two processes on the CPU (gloo) against one with the summed batch."""

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


LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc_per_node=2",
    "accelerate launch": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 "
    "--mixed_precision=no --dynamo_backend=no",  # the script says that there is no GPU
}


def train(folder, launcher, batch, strategy, *settings):
    """What each of two ranks found."""
    command = [sys.executable, "-m", *LAUNCHERS[launcher].split(), str(WORKER), str(folder), batch, strategy, *settings]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


SEVERAL = ["gradient_accumulation_steps=2", "gradient_checkpointing=true"]
CASES = {
    "sizes": ("torchrun", "sizes", []),
    "several subnets a step, micro-batches and checkpointing": ("accelerate launch", "sandwich", SEVERAL),
    "a GLoRA adapter": ("accelerate launch", "adapter", []),
}


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "strategy", "settings"), CASES.values(), ids=CASES.keys())
def test_two_processes_train_as_one_with_the_summed_batch(launcher, strategy, settings, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    distributed_worker.main(str(tmp_path / "one"), "8", strategy, *settings)
    one = json.loads((tmp_path / "one" / "rank-0.json").read_text())
    first, second = train(tmp_path / "two", launcher, "4", strategy, *settings)
    assert (one["processes"], first["processes"]) == (1, 2)
    assert first["drawn"] == second["drawn"] == one["drawn"]
    assert first["weights"] == second["weights"]
    assert len(one["losses"]) == 6
    assert first["losses"] == pytest.approx(one["losses"], abs=2e-4)
    assert first["weights"] == pytest.approx(one["weights"], rel=1e-3, abs=1e-5)
    assert first["eval_loss"] == pytest.approx(one["eval_loss"], abs=2e-4)
