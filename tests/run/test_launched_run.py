"""Whole runs of two processes on the CPU, as torchrun and accelerate launch start them."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from forked import Forked
from transformers import AutoModelForSequenceClassification

from glora_search import cli
from glora_search.run.folder import RunFolder
from glora_search.search.shared.ledger import PLACE
from glora_search.search.trials import STUDY_NAME

pytestmark = pytest.mark.slow

COMMAND = ["glora_search", "run", "recipe.yaml", "--run-dir", "run"]
ROOT = Path(__file__).parent.parent.parent
LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc_per_node=2",
    "accelerate": "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
    "--dynamo_backend=no --main_process_port=0",
}


def command():
    sys.argv = COMMAND
    cli.main()


@pytest.fixture
def launched(tmp_path):
    """``launched(recipe, launcher)``: the processes of a run in ``tmp_path / "run"``."""
    started = []

    def start(recipe, launcher="torchrun"):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        if launcher == "forks":
            started.append(Forked(command, tmp_path))
            started[-1].start()
            return started[-1]
        launch = ["-m", *LAUNCHERS[launcher].split()]
        arguments = [sys.executable, *launch, "-m", *COMMAND]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(arguments, cwd=tmp_path, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        kill(process)


def kill(process, *, alone=False):
    """SIGKILL, to a launcher and what it has launched."""
    if process.poll() is None:
        for one in [] if alone else psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
    process.communicate()


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "\n".join(process.communicate())
        time.sleep(0.02)


def places(view):
    """Where the search's workers have been."""
    workers = optuna.load_study(study_name=f"{STUDY_NAME}.workers", storage=view.journal())
    return {tuple(worker.user_attrs[PLACE]) for worker in workers.trials}


def finished(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return out, err


def test_recipe_to_merged_model_trained_together(launched, tiny_recipe, tmp_path):
    out, _ = finished(launched(tiny_recipe, "accelerate"))
    view = RunFolder(tmp_path / "run")
    assert {view.done(name)["processes"] for name in ("supernet", "search", "retrained", "baselines")} == {2}
    assert "processes" not in view.done("merged")
    rows = len((Path(tiny_recipe["data"]["train"])).read_text().splitlines()) - 1
    history = json.loads((tmp_path / "run" / "supernet" / "history.json").read_text())
    assert history[-1]["step"] == 2 * -(-rows // 32)  # 2 epochs, of 16 rows a process
    for line in ("supernet: ", "search: ", "retrain: ", "lora: ", "Report: "):
        assert out.count(line) == 1
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "merged")


def test_a_launch_goes_on_after_kills_in_supernet_search_and_race(launched, tiny_recipe, tmp_path):
    recipe = copy.deepcopy(tiny_recipe)
    recipe["supernet"]["training"]["num_train_epochs"] = 20
    recipe["search"]["trials"] = 400  # more than are done until what was launched sees that the launcher has ended
    training = {"num_train_epochs": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "use_cpu": True}
    recipe["finals"] = {"subnets": 1, "rates": [1], "teacher": 2, "training": training}
    run = tmp_path / "run"

    killed = launched(recipe, "forks")
    wait_for(lambda: any(run.glob("supernet/checkpoints/checkpoint-*/trainer_state.json")), killed)
    kill(killed)
    view = RunFolder(run)
    assert view.done("supernet") is None

    killed = launched(recipe, "forks")
    wait_for(lambda: view.study() is not None and len(view.study().trials) > 5 and len(places(view)) == 2, killed)
    kill(killed, alone=True)
    while view.is_busy():  # what it has launched ends with it
        time.sleep(0.05)
    assert view.done("search") is None

    killed = launched(recipe, "forks")
    wait_for(lambda: any(run.glob("finals/trainings/*/checkpoints/checkpoint-*/trainer_state.json")), killed)
    kill(killed)
    assert view.done("finals") is None

    out, _ = finished(launched(recipe))
    assert "supernet: already done" in out
    assert view.result("search")["trials"] == 400
    assert len(places(view)) == 4  # two processes, twice
    assert view.result("finals")["processes"] == 2
    assert not list(run.rglob("checkpoints"))
    AutoModelForSequenceClassification.from_pretrained(run / "merged")


def test_what_is_wrong_is_said_once(launched, tiny_recipe, tmp_path):
    recipe = copy.deepcopy(tiny_recipe)
    recipe["supernet"]["training"]["learning_rate"] = 1e30
    process = launched(recipe, "forks")
    out, _ = process.communicate(timeout=600)
    assert process.returncode
    said = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the supernet has diverged" in said[0]
    assert not RunFolder(tmp_path / "run").is_busy()
