"""A tiny recipe's run, whole and in parts."""

from __future__ import annotations

import copy
import shutil

import pytest

from glora_search import Recipe, Run


@pytest.fixture
def recipe(tiny_recipe):
    return Recipe.model_validate(tiny_recipe)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_recipe):
    """A run whose stages are all done, and its metrics; not to be changed."""
    run = Run.create(Recipe.model_validate(tiny_recipe), tmp_path_factory.mktemp("runs") / "tiny")
    return run, run.all_stages()


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run."""
    return Run(shutil.copytree(finished_run[0].folder, tmp_path / "copied"))


@pytest.fixture(scope="session")
def without_seconds():
    """``without_seconds(metrics)``: what two runs of one recipe have in common."""

    def strip(metrics):
        kept = {key: value for key, value in metrics.items() if key not in ("seconds", "lora_trainings")}
        kept["search"] = {key: value for key, value in kept["search"].items() if key != "seconds_per_evaluation"}
        return kept

    return strip


@pytest.fixture(scope="session")
def finals_recipe(tiny_recipe):
    training = {"num_train_epochs": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "use_cpu": True}
    section = {"subnets": 1, "rates": [0.5, 1], "teacher": 2, "training": training}
    return Recipe.model_validate({**copy.deepcopy(tiny_recipe), "baselines": [], "finals": section})


@pytest.fixture(scope="session")
def raced(finals_recipe, tmp_path_factory):
    """A run that ends in a race, and its metrics."""
    run = Run.create(finals_recipe, tmp_path_factory.mktemp("raced") / "run")
    return run, run.all_stages()


@pytest.fixture
def searched(raced, tmp_path):
    """A copy of it whose finals are next."""
    folder = shutil.copytree(raced[0].folder, tmp_path / "run", ignore=shutil.ignore_patterns("finals", "merged"))
    (folder / "metrics.json").unlink()
    return Run(folder)
