"""How a run folder is made from a recipe, and how the one that the same recipe made is known again."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from glora_search.errors import UserError, invalid
from glora_search.files.text import load_yaml, write_text
from glora_search.recipe.arguments import OTHER_MACHINE
from glora_search.recipe.schema import Recipe
from glora_search.space.schema import SearchSpace

VERSIONS = ("glora-search", "torch", "transformers", "peft", "datasets", "optuna", "accelerate", "numpy")


def is_made_from(folder: Path, recipe: Recipe) -> bool:
    """Whether a folder is the run folder of this recipe and this space; False where it is new.

    Raises:
        UserError: it holds something else; the message says what differs.
    """
    files = _files(recipe)
    if folder.exists() and not folder.is_dir():
        raise invalid("run-dir", str(folder), "a folder, not a file")
    if (folder / "recipe.yaml").is_file():
        for name in ("recipe.yaml", "space.yaml"):
            _refuse_other(folder / name, files[name])
        return True
    if folder.is_dir() and not all(_left_by_a_kill(path, files) for path in folder.iterdir()):
        raise invalid("run-dir", str(folder), "a new or empty folder, or a run folder")
    return False


def make(folder: Path, recipe: Recipe) -> None:
    """Make a run folder; the recipe is written last, since it is what makes a folder a run folder."""
    for name, text in _files(recipe).items():
        write_text(folder / name, text)


def _files(recipe: Recipe) -> dict[str, str]:
    space = yaml.safe_dump(SearchSpace.load(recipe.space).model_dump(), sort_keys=False)
    return {"space.yaml": space, "recipe.yaml": recipe.dump()}


def _left_by_a_kill(path: Path, files: dict[str, str]) -> bool:
    """Whether a file in a folder without a recipe is one that an interrupted `Run.create` wrote."""
    if path.name.endswith(".part"):
        return path.name.removesuffix(".part") in files
    return path.name == "space.yaml" and path.read_text(encoding="utf-8") == files["space.yaml"]


def _refuse_other(path: Path, text: str) -> None:
    """Refuse a run folder that another recipe, or another space, made; name what differs."""
    old = load_yaml(path) if path.is_file() else {}
    new = yaml.safe_load(text)
    if path.name == "recipe.yaml":
        old = _with_todays_keys(old)
    else:
        old["description"] = new["description"]  # words, which change nothing
    differences = [f"{key} is {after!r} here and was {before!r}" for key, before, after in _differences(old, new)]
    if differences:
        raise UserError(
            f"run-dir: {path.parent} was made from another {path.stem}: {'; '.join(differences[:5])}. "
            "Nothing was changed; use another --run-dir, or the recipe that made it"
        )


def _with_todays_keys(recipe: Any) -> Any:
    """A run folder's recipe with the defaults of keys that its version of this package did not have."""
    try:
        return yaml.safe_load(Recipe.model_validate(recipe, context=OTHER_MACHINE).dump())
    except ValueError:  # damaged, or of another version: the differences name it
        return recipe


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for name in dict.fromkeys([*old, *new])
            for difference in _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if old == new else [(key, old, new)]


def environment() -> dict[str, Any]:
    """What a run ran on."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in VERSIONS},
    }
