"""Running stages: each once, one at a time, and again where what it was made from has changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glora_search.errors import UserError, invalid
from glora_search.files.claims import claimed
from glora_search.files.disk import full_disk
from glora_search.files.folders import remove
from glora_search.files.text import write_json
from glora_search.progress import say
from glora_search.recipe.schema import Recipe
from glora_search.run import cost
from glora_search.run.changes import Change, changes, check_changes, made_from_another, stale_stages
from glora_search.run.clock import clocked, forget_clock, go_on_from
from glora_search.run.context import Context
from glora_search.run.folder import BUDGETS, LOCK, WEIGHTS, RunFolder, digest
from glora_search.run.launch import check_recipe, helped
from glora_search.run.making import is_run_folder, make, resolved, share_supernet
from glora_search.run.origin import check_origin, differences, forget_unlabelled, origin_of
from glora_search.run.prepare import check
from glora_search.run.stages import STAGES, Stage, function, made_from
from glora_search.run.status import at_work
from glora_search.tasks import Task

TO_GO_ON = ("checkpoints", "trained")
"""Folders in a stage's own that only a killed stage needs, to go on."""
LOCK_SECONDS = 2
"""Seconds for which a run's lock is waited for: `is_busy` holds it for a moment."""


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
        check_recipe(self.context.recipe)
        self.folder, self.view = self.context.folder, self.context.view

    @classmethod
    def create(
        cls, recipe: Recipe, folder: str | Path | None = None, *, again: bool = False, storage: str | None = None
    ) -> Run:
        """Make a run folder, or open the one that the recipe made before.

        What its stages will do is tried before anything is written, see `prepare.check`. Where sections of later
        stages have changed, the run takes them: what they make stale is said and removed.

        Args:
            folder: None is ``runs/<recipe's name>``.
            again: try also a recipe that has made the folder before, with the data and the model that are there now.
            storage: where a search that has more trials now will go on, see `search.run_search`.

        Raises:
            UserError: the folder was made from another recipe or space; what is in it stays as it is. Or the recipe
                cannot be run, or another process works in the folder.
        """
        folder = Path(folder) if folder is not None else Path("runs") / recipe.name
        check_recipe(recipe)
        noted = resolved(recipe)
        if is_run_folder(folder, recipe):
            run = cls(folder)
            found = changes(run.view, noted)
            check_changes(run.view, found)
            if found:
                return run._changed(noted, check(recipe), storage)
            return run._tried_again(check(recipe)) if again else run
        task = check(recipe)  # messages have the paths that the user wrote
        with writing_in(folder):
            if not is_run_folder(folder, recipe):
                make(folder, noted)
            elif changes(RunFolder(folder), noted):
                raise invalid("run-dir", str(folder), "a folder that no other process makes a run in")
        return cls(folder)._with(task)

    def _with(self, task: Task) -> Run:
        self.context.task = task
        return self

    def _tried_again(self, task: Task) -> Run:
        """The run, which can go on with a task that was loaded anew."""
        if origin_of(self.view) is not None:
            check_origin(self._with(task).context)
        return self._with(task)

    def _changed(self, recipe: Recipe, task: Task, storage: str | None) -> Run:
        """The run with another recipe, as far as it may be another; what is stale is removed first."""
        with self.working():
            view = RunFolder(self.folder)  # as another process may have left it
            found = changes(view, recipe)
            check_changes(view, found)
            self._check_moves(found, task)
            for change in found:
                say(f"{change.key}: {change.after!r}, was {change.before!r}", "dim")
            found = [change for change in found if not self._is_moved_unlabelled(change, task)]
            stale, goes_on = stale_stages(view, recipe, found)
            self._check_alone()
            if goes_on:
                view.check_storage(storage)
            if not view.has_begun():
                stale = list(STAGES)
            recipes = (view.recipe, recipe.model_dump())
            for name in stale:
                stage = STAGES[name]
                if view.done(name) is not None or any(map(stage.asked_by, recipes)):
                    self._forget(stage, "made with other settings")
                else:  # nothing was made from it
                    self._remove(stage.result or name)
            if goes_on:
                searched = view.result("search")
                say(f"search: continuing from {searched['trials']} trials")
                go_on_from(self.folder / "search", searched["seconds"])
                (self.folder / STAGES["search"].written_last).unlink()
                self._remove_made_from(STAGES["search"], "made from the search so far")
            if any(change.key == "data.unlabelled" for change in found):
                forget_unlabelled(view)
            make(self.folder, recipe)
        return type(self)(self.folder)._with(task)

    def _check_moves(self, found: list[Change], task: Task) -> None:
        """Refuse other data, or another model, in another place."""
        moved = [str(change) for change in found if change.is_move() and change.key != "space"]
        noted = origin_of(self.view)
        if not moved or not self.view.has_begun():
            return
        different = ["what it was made from is not noted"] if noted is None else differences(noted, task)
        if different:
            raise made_from_another(self.view, "recipe", [*moved, *different])

    def _is_moved_unlabelled(self, change: Change, task: Task) -> bool:
        """Whether these are the same further rows in another place; unlike the others, they may be others."""
        if change.key != "data.unlabelled" or change.after is None:
            return False
        noted = origin_of(self.view) or {"data": {}}
        then, now = noted["data"].get("unlabelled"), task.data.fingerprints()["unlabelled"]
        return then is not None and then["digest"] == now["digest"]

    def all_stages(self, *, workers: int = 1) -> dict[str, Any]:
        """Every stage that is not done yet, in order; those that the recipe does not ask for are left out.

        Args:
            workers: processes on this machine that share the trainings of the finals, this one included. The search
                has one, so that the result does not depend on their number.

        Returns:
            The content of ``metrics.json``.

        Raises:
            UserError: see `do`; or there are several workers, but no finals.
        """
        if workers < 1:
            raise invalid("workers", workers, "1 or more")
        if workers > 1 and self.context.recipe.finals is None:
            raise invalid("workers", workers, "1, since the recipe has no section finals")
        if self.view.done("supernet") is None and not self.view.is_busy():
            say(cost.said(self.context), "dim")
        for stage in STAGES.values():
            if self.view.asks_for(stage):
                self.do(stage.name, **({"workers": workers} if stage.name == "finals" else {}))
        for budget in self.context.recipe.search.budgets:
            say(f"budget {budget:,}")
            self.under(budget).all_stages(workers=workers)
        return self.view.result("test")

    def under(self, budget: int) -> Run:
        """The run of one of the recipe's smaller budgets, on this one's supernet, which is trained already.

        Raises:
            UserError: the supernet is not trained yet.
        """
        trained = self.view.result("supernet")
        recipe, folder = self.context.recipe.under(budget), self.folder / BUDGETS / str(budget)
        largest = trained.get("max_params", recipe.supernet.max_params)  # an older one has not noted it
        recipe.supernet.max_params = None if largest is None else max(largest, budget)
        recipe.space = str((self.folder / "space.yaml").resolve())
        run = Run.create(recipe, folder)
        if run.view.done("supernet") is None:
            with run.working():
                share_supernet(self.view, folder)
        return run

    def do(self, name: str, **options: Any) -> dict[str, Any]:
        """Do a stage's work unless it is done; what was made without its result is removed.

        Args:
            name: of the stage, see `stages.STAGES`.
            options: of its function, e.g. ``workers`` of the search.

        Returns:
            What the stage has left, with the ``seconds`` that it took, calls included that were killed.

        Raises:
            UserError: a stage that it needs is not done, the recipe has no section for it, or another process works in
                the run folder.
        """
        stage = STAGES[name]
        done = self.view.done(name)
        if done is None:
            self._check_asked(stage)
        if done is None:
            self._check_needs(stage)
            if stage.joined_by and at_work(self.view) == name:
                self._join(stage, options)
                done = self.view.done(name)
        if done is None:
            with self.working():
                done = self.view.done(name) or self._work(stage, options)
                self._remove_checkpoints(stage)
            return done
        say(f"{stage.command}: already done, in {self.folder / stage.shown}", "dim")
        if self._left_by(stage):  # killed in the moment after it was done
            with contextlib.suppress(UserError), self.working():
                self._remove_checkpoints(stage)
        return done

    def _check_asked(self, stage: Stage) -> None:
        """Refuse a stage that the recipe leaves out: it would remove results that are made without it."""
        recipe, key = self.view.recipe, stage.asked
        where = f"{stage.command}: {self.folder / 'recipe.yaml'}"
        if key and recipe.get(key) is None:
            raise UserError(f"{where} has no section {key}")
        if stage.alone or stage.asked_by(recipe):
            return
        if key and not recipe[key]:
            raise UserError(f"{where} has no {key}: the key is empty")
        raise UserError(f"{where} has {stage.unless}, whose winner is the final adapter: nothing is retrained")

    def _check_needs(self, stage: Stage) -> None:
        for needed in stage.needs:
            self.view.result(needed)

    def _work(self, stage: Stage, options: dict[str, Any]) -> dict[str, Any]:
        self._check_needs(stage)  # again, under the lock
        folder = self.folder / stage.name
        new = stage.has_folder and not folder.exists()
        if new:
            folder.mkdir()  # by which others see at once what this process is at
        try:
            check_origin(self.context)
        except UserError:
            if new:
                folder.rmdir()
            raise
        for left in self.folder.glob(".removed-*"):  # by a kill
            remove(left)
        with clocked(folder) as seconds, helped(stage, self.folder, options) as processes:
            done: dict[str, Any] = function(stage.function)(self.context, folder, **options)
            done.setdefault("seconds", round(seconds(), 1))
        if processes > 1:
            done["processes"] = processes
        if (folder / WEIGHTS).is_file():
            done["weights"] = digest(folder / WEIGHTS)
        # A later stage may have been done without this one, as merging is without retraining.
        self._remove_beside(stage, f"made without {stage.shown}")
        self._remove_made_from(stage, f"made without {stage.shown}")
        write_json(self.folder / stage.written_last, done)
        forget_clock(folder)
        return done

    def _join(self, stage: Stage, options: dict[str, Any]) -> None:
        """Help the process that is at this stage, until it has noted the result."""
        say(f"{stage.command}: joining the process that is at work in this folder")
        function(stage.joined_by)(self.folder, **options)
        while self.view.done(stage.name) is None and self.view.is_busy():
            time.sleep(0.5)

    def forget(self, name: str) -> None:
        """Remove a stage's result and all that was made from it, so that it is done again.

        Raises:
            UserError: the stage could not be done now (its input, the model or the data is missing); nothing was
                removed.
        """
        stage = STAGES[name]
        self._check_asked(stage)
        self._check_needs(stage)
        _ = self.context.space
        with self.working():
            self._check_needs(stage)
            self._check_alone()
            if name == next(iter(STAGES)):
                self._start_over()
            else:
                check_origin(self.context)
            self._remove(stage.result or name)
            self._remove_beside(stage, "made from the old result")
            self._remove_made_from(stage, "made from the old result")

    def _start_over(self) -> None:
        """The first stage can be done again with other data, or another model: then all is stale."""
        noted = origin_of(self.view)
        if noted is not None and differences(noted, self.context.task):
            for other in STAGES.values():
                self._forget(other, "made from different data, model or code")

    def _forget(self, stage: Stage, why: str) -> None:
        """Remove a stage's result, whole or not, and what was made from it."""
        self._remove_all_of(stage, stage, why)
        self._remove_made_from(stage, why)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Held while something is written in the run folder; the kernel gives the lock back when the process dies.

        Raises:
            UserError: another process works in this run folder, or the disk is full.
        """
        with writing_in(self.folder):
            yield

    def _check_alone(self) -> None:
        """Refuse to remove what a process that helps with the finals still writes."""
        for lock in (self.folder / "finals" / "trainings").rglob("*.lock"):
            with claimed(lock) as ours:
                if not ours:
                    raise invalid("run", str(self.folder), "a run folder that no other process works in")

    def _remove_made_from(self, stage: Stage, why: str) -> None:
        for made in made_from(stage.name):
            self._remove_all_of(made, stage, why)

    def _remove_all_of(self, made: Stage, stage: Stage, why: str) -> None:
        if self.view.done(made.name) is not None:
            say(f"{stage.command}: removing {made.shown}, {why}")
        self._remove(made.result or made.name)
        self._remove_beside(made, why)

    def _remove_beside(self, stage: Stage, why: str) -> None:
        """Remove what else a stage stands for."""
        for name in stage.beside:
            path = self.folder / name
            if path.exists():
                say(f"{stage.command}: removing {name}{'/' if path.is_dir() else ''}, {why}")
            self._remove(name)

    def _remove(self, *names: str) -> None:
        """Remove results: each is gone at once, so that a kill leaves none that looks done and is not whole."""
        for name in names:
            path, going = self.folder / name, self.folder / f".removed-{name}"
            forget_clock(path)
            remove(going)
            if path.is_dir():
                path.rename(going)
            remove(going)
            remove(path)

    def _remove_checkpoints(self, stage: Stage) -> None:
        for left in self._left_by(stage):
            shutil.rmtree(left, ignore_errors=True)

    def _left_by(self, stage: Stage) -> list[Path]:
        walk = os.walk(self.folder / stage.name)  # not rglob: another process may be removing them
        return [Path(where) / name for where, names, _ in walk for name in names if name in TO_GO_ON]


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """See `Run.working`; the folder need not be there yet."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:
            raise invalid("run", str(folder), "a run folder that no other process works in") from None
        try:
            yield
        finally:
            lock.release()
    except Exception as error:
        full = full_disk(error, folder)
        if full is None:
            raise
        raise full from error
