"""A run folder, looked at: what was asked, what is done, which result is the final one. Nothing is changed or loaded.

Report, status, compare, predict and the stages themselves read a run through this view; it needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage

from glora_search.errors import UserError, invalid
from glora_search.files.text import load_yaml, read_json, shell
from glora_search.ranking import rank_key
from glora_search.run.stages import STAGES, Stage
from glora_search.search.shared.storage import JournalReader
from glora_search.search.trials import STUDY_NAME

SECTIONS = ("name", "task", "data", "supernet", "search")
"""What every recipe has."""
LOCK, BUDGETS, ORIGIN = ".lock", "budgets", "origin.json"
WEIGHTS = "adapter_model.safetensors"
"""Of an adapter's folder: its weights."""
SHARED = "shared"
"""The file in ``search/`` that says that the trials are in a storage which ``--storage`` has named."""


class RunFolder:
    """The read-only view of a run folder.

    Args:
        path: the folder.

    Attributes:
        recipe: the recipe as it was written, every default included.

    Raises:
        UserError: the folder is not a run folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        recipe = self.path / "recipe.yaml"
        if not recipe.is_file() or not (self.path / "space.yaml").is_file():
            made = "this is a recipe: " if self.path.suffix in (".yaml", ".yml") and self.path.is_file() else ""
            raise invalid("run", str(path), f"a run folder, {made}made by 'glora-search run RECIPE'")
        self.recipe: dict[str, Any] = load_yaml(recipe)
        missing = [key for key in SECTIONS if key not in self.recipe]
        if missing:
            raise UserError(f"{recipe}: {missing[0]}: missing; this is not a run folder's recipe")

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.recipe["name"])

    @property
    def budget(self) -> int | None:
        """The most parameters that an adapter may have."""
        found: int | None = self.recipe["search"].get("max_params")
        return found

    def by_budget(self) -> dict[int, RunFolder | None]:
        """The budgets below the largest one, the smallest first -> the run under each; None where it has not begun."""
        folders = {budget: self.path / BUDGETS / str(budget) for budget in self.recipe["search"].get("budgets") or []}
        return {
            budget: RunFolder(folder) if (folder / "recipe.yaml").is_file() else None
            for budget, folder in folders.items()
        }

    def smaller(self) -> list[RunFolder]:
        """The runs under smaller budgets that this one has begun, the smallest first."""
        return [run for run in self.by_budget().values() if run is not None]

    def asks_for(self, stage: Stage) -> bool:
        """Whether a run does a stage, see `Stage.asked_by`."""
        return stage.asked_by(self.recipe)

    def command(self, name: str, *options: str) -> str:
        """A command of the command line on this run, as a shell takes it."""
        return shell(["glora-search", name, str(self.path), *options])

    # -- stages ----------------------------------------------------------------------------------------------------

    def done(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage has left, or None."""
        path = self.path / STAGES[stage].written_last
        if not path.is_file():
            return None
        expected = {"seconds", *(("name", "search", "final", "merged", "baselines") if stage == "test" else ())}
        try:
            found = read_json(path)
            if not isinstance(found, dict) or not expected <= found.keys():
                raise UserError(f"{path}: not what {STAGES[stage].command} writes")
        except UserError as error:
            raise UserError(f"{error}; remove it to repeat the stage") from None
        return found

    def has_begun(self) -> bool:
        """Whether there is something that the recipe, its data and its model have made: a result, or a checkpoint."""
        results = any((self.path / stage.written_last).is_file() for stage in STAGES.values())
        return results or any(self.path.glob("*/checkpoints/checkpoint-*"))

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage has left.

        Raises:
            UserError: it is not finished; the message names the command.
        """
        found = self.done(stage)
        if found is None:
            made = STAGES[stage]
            raise UserError(f"{self.path}: no {made.shown} yet; run first: {self.command(made.command)}")
        return found

    def merged_cannot_be_used(self, error: Exception) -> UserError:
        """What to do about a merged model that does not load."""
        reason = str(error).strip().split("\n")[0]
        again = self.command("merge", "--again")
        return UserError(f"{self.path / 'merged'}: cannot be used ({reason}); merge again: {again}")

    def seconds(self) -> dict[str, float]:
        """Command -> how long its stage took, for the stages of a run that are done."""
        found: dict[str, float] = {}
        for stage in (one for one in STAGES.values() if not one.alone):
            seconds = (self.done(stage.name) or {}).get("seconds")
            if isinstance(seconds, dict):  # metrics.json has those of all stages, also of what was removed since
                found = {**found, **seconds}
            elif seconds is not None:
                found[stage.command] = seconds
        return found

    @property
    def direction(self) -> str | None:
        """Whether a higher or a lower metric is better; None as long as no stage has noted it."""
        noted = (done for name in STAGES if (done := self.done(name)) is not None)
        found = next((done["direction"] for done in noted if "direction" in done), None)
        return None if found is None else str(found)

    def final(self) -> tuple[str, dict[str, Any]] | None:
        """The final adapter: who won the finals, else ``best`` or ``retrained``, whichever is better on validation.

        Returns:
            Its folder and its figures; None where none is done.
        """
        raced = self.done("finals")
        if raced is not None:
            return "finals", raced
        found = {name: done for name in ("retrained", "best") if (done := self.done(name)) is not None}
        if not found:
            return None
        # Older folders have it in supernet/ alone: without it the choice would be a guess.
        direction = self.direction or str(self.result("supernet").get("direction", "maximize"))

        def key(name: str) -> tuple[float, float]:
            return rank_key(found[name]["validation"], found[name]["validation_loss"], direction=direction)

        name = min(found, key=key)
        return name, found[name]

    def metrics(self) -> dict[str, Any]:
        """metrics.json, or of a run that is not finished what it will say, without the test split's part."""
        done = self.done("test")
        if done is not None:
            return done
        metrics: dict[str, Any] = {
            "name": self.name,
            "metric": (self.done("supernet") or {}).get("metric", "metric"),
            "direction": self.direction or "maximize",
            "budget": self.budget,
            "baselines": (self.done("baselines") or {"list": []})["list"],
        }
        searched, final, merged = self.done("search"), self.final(), self.done("merged")
        if searched is not None:
            exported = self.done("best") or {}
            best = {**searched["best"], **{key: exported[key] for key in ("validation",) if key in exported}}
            steps = self.recipe["search"].get("calibration_steps", 0)
            metrics["search"] = {"calibration_steps": steps, "best": best}
        if final is not None and final[0] != "best":
            metrics["final"] = {"source": source_name(*final), **final[1]}
        if merged is not None:
            metrics["merged"] = merged
        return metrics

    # -- the search ------------------------------------------------------------------------------------------------

    def journal(self) -> BaseStorage:
        """The journal of the run's search, to be looked at.

        Raises:
            UserError: no search has begun in this folder.
        """
        path = self.path / "search" / "journal.log"
        if not path.is_file() or not path.stat().st_size:
            raise UserError(f"{self.path}: no search has begun here; run first: {self.command('search')}")
        return JournalStorage(JournalReader(path))

    def trials(self) -> Path:
        """The finished search's table of trials, as the search has written it.

        Raises:
            UserError: somebody has changed it.
        """
        path = self.path / "search" / "trials.csv"
        noted = self.result("search").get("files", {}).get(path.name)
        if noted is not None and path.is_file() and noted != digest(path):
            raise UserError(
                f"{path}: not as the search has written it. Bring it back, or remove {path.with_name('stage.json')} "
                f"and run: {self.command('search')}"
            )
        return path

    def study(self) -> optuna.Study | None:
        """The search in the folder's journal; None where none has begun."""
        try:
            return optuna.load_study(study_name=STUDY_NAME, storage=self.journal())
        except (UserError, KeyError):  # no journal, or no study in it yet
            return None

    def weights(self) -> str:
        """A short name of the supernet's weights.

        Raises:
            UserError: the supernet is not trained yet.
        """
        self.result("supernet")
        return digest(self.path / "supernet" / WEIGHTS)

    def check_weights(self, stage: str) -> None:
        """Refuse an adapter whose weights are not those that its stage has left, and noted.

        Args:
            stage: its folder; of an adapter inside of one, nothing is noted.

        Raises:
            UserError: they are others.
        """
        noted = (self.done(stage) or {}).get("weights") if stage in STAGES else None
        if noted is not None and digest(self.path / stage / WEIGHTS) != noted:
            again = self.command(STAGES[stage].command, "--again")
            raise UserError(
                f"{self.path / stage / WEIGHTS}: not the weights that were trained. Bring them back, or: {again}"
            )

    def shared_name(self) -> str:
        """The search's name in a storage that others use too: the same on each machine that has this run folder.

        A search of more trials has the same name, since it goes on; one with another budget, say, has its own.

        Raises:
            UserError: the supernet is not trained yet.
        """
        settings = {k: v for k, v in self.recipe["search"].items() if f"search.{k}" not in STAGES["search"].goes_on}
        digest = hashlib.sha256(json.dumps([self.weights(), settings], sort_keys=True).encode())
        digest.update((self.path / "space.yaml").read_bytes())
        return f"{self.name}-{digest.hexdigest()[:12]}"

    def check_storage(self, storage: str | None) -> None:
        """Refuse to go on with a search where its trials are not: they are in the folder's journal, or elsewhere.

        Raises:
            UserError: names the ways to go on.
        """
        command, shared = self.command("search"), (self.path / "search" / SHARED).is_file()
        study = self.study() if storage is not None and not shared else None
        if study is not None and study.get_trials(deepcopy=False):
            raise UserError(
                f"{self.path}: the trials of its search are in this folder. To go on here: {command}, with --trials N "
                f"for more trials. To search anew in the storage: {command} --again --storage STORAGE"
            )
        if storage is None and shared:
            raise UserError(
                f"{self.path}: the trials of its search are in the storage that --storage named. To go on there: "
                f"{command} --storage STORAGE, with --trials N for more trials. To search anew here: {command} --again"
            )

    # -- who works here --------------------------------------------------------------------------------------------

    @property
    def lock(self) -> Path:
        """The file that a process holds while it works here."""
        return self.path / LOCK

    def is_busy(self) -> bool:
        """Whether a process works in the run folder; nothing is made there."""
        if not self.lock.is_file():
            return False
        try:
            with FileLock(self.lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # of someone else, or on a disk that is read-only: it cannot be told
            return False


def digest(path: Path) -> str:
    """A short name of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def source_name(stage: str, figures: dict[str, Any]) -> str:
    """What tables call the final adapter: ``inherited``, ``retrained``, or who won the finals."""
    return "inherited" if stage == "best" else str(figures.get("winner", stage))
