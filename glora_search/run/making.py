"""How a run folder is made from a recipe."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from glora_search.errors import invalid
from glora_search.files.text import write_json, write_text
from glora_search.recipe.data import SPLITS, Files, Hub, Saved
from glora_search.recipe.metrics import LmEval
from glora_search.recipe.schema import Recipe
from glora_search.run.folder import ORIGIN, RunFolder
from glora_search.space.schema import SearchSpace

VERSIONS = ("glora-search", "torch", "transformers", "peft", "datasets", "optuna", "accelerate", "numpy")


def is_run_folder(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder is a run folder; False where it is new, or was left half made by a kill.

    Args:
        recipe: what a run folder is to be made from.

    Raises:
        UserError: it holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise invalid("run-dir", str(folder), "a folder, not a file")
    if (folder / "recipe.yaml").is_file():
        return True
    if folder.is_dir() and not all(_left_by_a_kill(path, _files(recipe)) for path in folder.iterdir()):
        raise invalid("run-dir", str(folder), "a new or empty folder, or a run folder")
    return False


def make(folder: Path, recipe: Recipe) -> None:
    """Make a run folder; the recipe is written last, since it is what makes a folder a run folder."""
    for name, text in _files(recipe).items():
        write_text(folder / name, text)


def share_supernet(run: RunFolder, folder: Path) -> None:
    """Give a new run folder another run's supernet, and what that was made from; what says that it is there is last."""
    done = run.result("supernet")
    for name in (ORIGIN, "environment.json"):
        if (run.path / name).is_file():  # a user may have removed the first one
            shutil.copy2(run.path / name, folder / name)
    unfinished = shutil.ignore_patterns("stage.json", "checkpoints")
    shutil.copytree(run.path / "supernet", folder / "supernet", ignore=unfinished, dirs_exist_ok=True)
    write_json(folder / "supernet" / "stage.json", {**done, "seconds": 0.0})


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that it means the same in every working directory."""
    found = recipe.model_copy(deep=True)
    if found.task.model != "minilm" and Path(found.task.model).expanduser().is_dir():
        found.task.model = _whole(found.task.model)
    if Path(found.space).is_file():
        found.space = _whole(found.space)
    for metric in found.task.metrics:
        if isinstance(metric, LmEval) and metric.include_path is not None:
            metric.include_path = _whole(metric.include_path)
    data = found.data
    if isinstance(data, Files):
        for split in SPLITS:
            if (path := getattr(data, split)) is not None:
                setattr(data, split, _whole(path))
    elif isinstance(data, Saved):
        data.folder = _whole(data.folder)
    elif isinstance(data, Hub) and Path(data.name).is_dir():
        data.name = _whole(data.name)
    return found


def _whole(path: str) -> str:
    return os.path.abspath(Path(path).expanduser())


def _files(recipe: Recipe) -> dict[str, str]:
    space = yaml.safe_dump(SearchSpace.load(recipe.space).model_dump(), sort_keys=False)
    return {"space.yaml": space, "recipe.yaml": recipe.dump()}


def _left_by_a_kill(path: Path, files: dict[str, str]) -> bool:
    """Whether a file in a folder without a recipe is one that an interrupted `Run.create` wrote."""
    if path.name.endswith(".part"):
        return path.name.removesuffix(".part") in files
    return path.name == ".lock" or (
        path.name == "space.yaml" and path.read_text(encoding="utf-8") == files["space.yaml"]
    )


def environment(recipe: Recipe) -> dict[str, Any]:
    """What a run of a recipe ran on."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(recipe),
    }


def versions(recipe: Recipe) -> dict[str, str]:
    """The versions of the packages that a recipe's results come from."""
    quantization = recipe.task.quantization
    return {name: _version(name) for name in (*VERSIONS, *([quantization.package] if quantization else []))}


@cache
def _version(package: str) -> str:
    """Each stage asks, and it takes longer to read than the rest of what is compared."""
    return version(package)
