"""Running stages: each once, one at a time, and again where what it was made from has changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ImportString, TypeAdapter

from glora_search.errors import invalid
from glora_search.files.text import write_json
from glora_search.progress import say
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.making import is_made_from, make
from glora_search.run.stages import STAGES, Stage, made_from
from glora_search.search.samplers import make_sampler
from glora_search.space import SearchSpace
from glora_search.supernet import make_sampling
from glora_search.tasks import Task, make_task


class Run:
    """An experiment in its run folder.

    Args:
        folder: the run folder; it must have been made by `create`.

    Attributes:
        folder: its path.
        view: what is done there, see `folder.RunFolder`.
        context: what the stages share.

    Raises:
        UserError: the folder is not a run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.context = Context(folder)
        self.folder, self.view = self.context.folder, self.context.view

    @classmethod
    def create(cls, recipe: Recipe, folder: str | Path | None = None) -> Run:
        """Make a run folder, or open the one that the same recipe made before.

        The recipe, its space, its model and its data are checked against each other before anything is written.

        Args:
            folder: None is ``runs/<recipe's name>``.

        Raises:
            UserError: the folder was made from another recipe or space; what is in it stays as it is. Or the recipe
                cannot be run.
        """
        folder = Path(folder) if folder is not None else Path("runs") / recipe.name
        if is_made_from(folder, recipe):
            return cls(folder)
        task = _check(recipe)
        make(folder, recipe)
        run = cls(folder)
        run.context.task = task
        return run

    def all_stages(self) -> dict[str, Any]:
        """Every stage that is not done yet, in order; those that the recipe does not ask for are left out.

        Returns:
            The content of ``metrics.json``.
        """
        for stage in STAGES.values():
            if self.view.asks_for(stage):
                self.do(stage.name)
        return self.view.result("test")

    def do(self, name: str, **options: Any) -> dict[str, Any]:
        """Do a stage's work unless it is done; what was made without its result is removed.

        Args:
            name: of the stage, see `stages.STAGES`.
            options: of its function, e.g. ``workers`` of the search.

        Returns:
            What the stage has left, with the ``seconds`` that the call that finished it took.

        Raises:
            UserError: a stage that it needs is not done, or another process works in the run folder.
        """
        stage = STAGES[name]
        done = self.view.done(name)
        if done is None:
            for needed in stage.needs:
                self.view.result(needed)
            if stage.joined_by:
                self._join(stage, options)
            with self.working():
                done = self.view.done(name) or self._work(stage, options)
        else:
            say(f"{stage.command}: already done, in {self.folder / stage.shown}", "dim")
        for checkpoints in list((self.folder / name).rglob("checkpoints")):
            shutil.rmtree(checkpoints, ignore_errors=True)
        return done

    def _work(self, stage: Stage, options: dict[str, Any]) -> dict[str, Any]:
        folder = self.folder / stage.name
        if not stage.result:
            folder.mkdir(exist_ok=True)
        started = time.perf_counter()
        done: dict[str, Any] = _function(stage.function)(self.context, folder, **options)
        seconds = round(time.perf_counter() - started, 1)
        done["seconds"] = {**self.view.seconds(), stage.command: seconds} if stage.result else seconds
        # A later stage may have been done without this one, as merging is without retraining.
        self._remove(*stage.beside)
        self._remove_made_from(stage)
        write_json(self.folder / stage.written_last, done)
        return done

    def _join(self, stage: Stage, options: dict[str, Any]) -> None:
        """Where another process is at this stage already, help it until it has noted the result."""
        if not self.view.is_busy():
            return
        say(f"{stage.command}: joining the search that is running in this folder")
        _function(stage.joined_by)(self.folder, **options)
        while self.view.done(stage.name) is None and self.view.is_busy():
            time.sleep(0.5)

    def forget(self, name: str) -> None:
        """Remove a stage's result and all that was made from it, so that it is done again.

        Raises:
            UserError: the stage could not be done now (its input, the model or the data is missing); nothing was
                removed.
        """
        stage = STAGES[name]
        for needed in stage.needs:
            self.view.result(needed)
        _ = self.context.space
        with self.working():
            self._remove(stage.result or name, *stage.beside)
            self._remove_made_from(stage)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Held while something is written in the run folder; the kernel gives the lock back when the process dies.

        Raises:
            UserError: another process works in this run folder.
        """
        lock = FileLock(self.view.lock)
        try:
            lock.acquire(timeout=2)  # `is_busy` holds it for a moment
        except Timeout:
            raise invalid("run", str(self.folder), "a run folder that no other process works in") from None
        try:
            yield
        finally:
            lock.release()

    def _remove_made_from(self, stage: Stage) -> None:
        for made in made_from(stage.name):
            if self.view.done(made.name) is not None:
                what = " and ".join([made.shown, *(f"{name}" for name in made.beside if made.result)])
                say(f"{stage.command}: removing {what}, made without this result")
            self._remove(made.result or made.name, *made.beside)

    def _remove(self, *names: str) -> None:
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _function(path: str) -> Any:
    return TypeAdapter(ImportString).validate_python(path)


def _check(recipe: Recipe) -> Task:
    """Everything that can be wrong with a recipe and is cheap to find out, before the first stage."""
    say("reading data and model", "dim")
    task = make_task(recipe)
    supernet, search = recipe.supernet, recipe.search
    space = SearchSpace.load(recipe.space).bind(task.model(), task.modules_to_save)
    space.check_budget(search.max_params)
    options: dict[str, Any] = {"seed": recipe.seed, "max_params": search.max_params}
    make_sampling(supernet.sampling, space, **options, options=supernet.sampling_options)
    make_sampler(search.sampler, space, max_params=search.max_params, options=search.options)
    return task
