"""The run folder: what is done, what it was made from, and who works in it.

A stage writes its ``stage.json`` last: a folder without it is unfinished work, one with it is never done again.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from glora_search.errors import UserError, invalid
from glora_search.files.checked import validate
from glora_search.files.text import load_yaml, read_json, write_json, write_text
from glora_search.progress import say
from glora_search.recipe.arguments import OTHER_MACHINE
from glora_search.recipe.schema import Recipe
from glora_search.run.stages import COMMANDS, NEEDS, STAGES
from glora_search.run.status import is_busy
from glora_search.space.schema import SearchSpace

VERSIONS = ("glora-search", "torch", "transformers", "peft", "datasets", "optuna", "accelerate", "numpy")


class RunFolder:
    """What the stages of an experiment have in common: their folder, and that each is done once.

    Args:
        folder: the run folder; it must have been made by `make`.

    Raises:
        UserError: the folder is not a run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "recipe.yaml"
        if not path.is_file() or not (self.folder / "space.yaml").is_file():
            raise invalid("run", str(folder), "a run folder, made by 'glora-search run RECIPE'")
        self.recipe = validate(Recipe, load_yaml(path), source=str(path), context=OTHER_MACHINE)

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage has left, or None."""
        path = self.folder / "metrics.json" if stage == "test" else self.folder / stage / "stage.json"
        return read_json(path) if path.is_file() else None

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage has left.

        Raises:
            UserError: it is not finished; the message names the command.
        """
        found = self.done(stage)
        if found is None:
            raise UserError(f"{self.folder}: no {stage}/ yet; run first: glora-search {COMMANDS[stage]} {self.folder}")
        return found

    def forget_from(self, stage: str) -> None:
        """Remove a stage's result and all that was made from it, so that it is done again.

        Raises:
            UserError: the stage could not be done now (its input or the data is missing); nothing was removed.
        """
        if stage in NEEDS:
            self.result(NEEDS[stage])
        self.check_inputs()
        with self._working():
            self._remove(stage)
            self._remove_made_from(stage)

    def _remove(self, stage: str) -> None:
        if stage == "test":
            for name in ("metrics.json", "report.html"):
                (self.folder / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder / stage, ignore_errors=True)

    def _remove_made_from(self, stage: str) -> None:
        for name in STAGES[STAGES.index(stage) + 1 :]:
            if name == "baselines":  # they depend on the recipe alone
                continue
            if self.done(name) is not None:
                what = "metrics.json and report.html" if name == "test" else f"{name}/"
                say(f"{COMMANDS[stage]}: {what} was made without this result and is removed")
            self._remove(name)
        if STAGES.index(stage) < STAGES.index("merged"):
            shutil.rmtree(self.folder / "exports", ignore_errors=True)

    def check_inputs(self) -> None:
        """Raise what any stage would raise at its beginning."""

    def _is_busy(self) -> bool:
        """Whether another process works in this run folder."""
        return is_busy(self.folder)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Held while a stage works; the kernel gives the lock back when the process dies.

        Raises:
            UserError: another process works in this run folder.
        """
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=2)  # `is_busy` holds it for a moment
        except Timeout:
            raise invalid("run", str(self.folder), "a run folder that no other process works in") from None
        try:
            yield
        finally:
            lock.release()

    def _stage(self, name: str, work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Do a stage's work unless it is done, and note what came of it and how long the call that finished took."""
        folder = self.folder / name
        done = self.done(name)
        if done is None:
            if name in NEEDS:
                self.result(NEEDS[name])
            with self._working():
                folder.mkdir(exist_ok=True)
                started = time.perf_counter()
                done = work(folder)
                done["seconds"] = round(time.perf_counter() - started, 1)
                # A later stage may have been done without this one, as merging is without retraining.
                self._remove_made_from(name)
                write_json(folder / "stage.json", done)
        else:
            say(f"{COMMANDS[name]}: done before, in {folder}", "dim")
        for checkpoints in list(folder.rglob("checkpoints")):
            shutil.rmtree(checkpoints, ignore_errors=True)
        return done


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
    if path.name == "recipe.yaml":
        old = _with_todays_keys(old)
    new = yaml.safe_load(text)
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
