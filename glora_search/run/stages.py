"""The stages of a run, in order: a table. A new stage is a row here, and a module with its function.

Nothing here needs torch: the command line lists the stages before it loads anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ImportString, TypeAdapter


@dataclass(frozen=True)
class Stage:
    """One step from a recipe to a merged model.

    Attributes:
        name: also the folder of its result in the run folder.
        command: of the command line.
        function: ``module:function`` that does the work. It is called with the `context.Context`, the stage's folder
            and the options of its command; what it returns is noted in ``stage.json``.
        help: what it does, in one line.
        needs: the stages whose results it reads; they have to be done.
        uses: the stages whose results it reads where they are there.
        asked: the key of the recipe without which a run leaves it out; empty for none.
        alone: whether a run leaves it out in any case, since it is for its own command alone.
        unless: the key of the recipe with which a run leaves it out, since another stage takes its place.
        keys: the keys of the recipe, beside the results of other stages, that its result is made from: where one
            changes, it is done again. Those that no stage names are what the supernet is made from, and so everything.
        goes_on: those among them with which it goes on from where it was.
        beside: what else it stands for in the run folder; removed with its result.
        result: what is written last, relative to the run folder.
        joined_by: ``module:function`` for a process that comes while another one is at this stage; empty where there is
            nothing to share.
        together: whether the processes of a launch do it in step, as one training on all of their devices.
    """

    name: str
    command: str
    function: str
    help: str
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    asked: str = ""
    alone: bool = False
    unless: str = ""
    keys: tuple[str, ...] = ()
    goes_on: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    result: str = ""
    joined_by: str = ""
    together: bool = False

    def asked_by(self, recipe: Mapping[str, Any]) -> bool:
        """Whether a run does it: the recipe asks for it, and it is not for its own command alone."""
        if self.alone:
            return False
        wanted, replaced = (recipe.get(key) for key in (self.asked, self.unless))
        return (not self.asked or wanted not in (None, [])) and (not self.unless or replaced is None)

    @property
    def written_last(self) -> str:
        """The file that says that the stage is done."""
        return self.result or f"{self.name}/stage.json"

    @property
    def has_folder(self) -> bool:
        """Whether its result is in a folder of its own."""
        return not self.result

    @property
    def shown(self) -> str:
        """What a message calls the result."""
        return self.result or f"{self.name}/"


_HERE = "glora_search.run"
_FOLLOWED = tuple(
    f"retrain.training.{name}"
    for name in (
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "dataloader_drop_last",
    )
)
"""Baselines are trained for as long as supernet and retraining together, and at the rate of retraining."""

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "supernet",
            "train-supernet",
            f"{_HERE}.supernet:train",
            "Train the supernet: all choices of every layer.",
            beside=("budgets",),
            together=True,
        ),
        Stage(
            "search",
            "search",
            f"{_HERE}.search:run_search",
            "Search for the best subnet under the budget.",
            needs=("supernet",),
            keys=("search", "search.max_params"),
            goes_on=("search.trials", "search.batch_size", "search.fold", "search.budgets"),
            joined_by=f"{_HERE}.search:assist",
        ),
        Stage(
            "best",
            "export",
            f"{_HERE}.export:export_best",
            "Write the best subnet as an adapter folder.",
            needs=("supernet", "search"),
            beside=("exports",),
        ),
        Stage(
            "retrained",
            "retrain",
            f"{_HERE}.retrain:retrain",
            "Train the best subnet on its own.",
            needs=("best",),
            unless="finals",
            keys=("retrain", *_FOLLOWED),
            beside=("exports",),
            together=True,
        ),
        Stage(
            "finals",
            "finals",
            f"{_HERE}.finals:run_finals",
            "Race the best subnets against LoRA and other uniform methods.",
            needs=("supernet", "search"),
            asked="finals",
            keys=("finals", "data.unlabelled"),
            joined_by=f"{_HERE}.finals:assist",
            beside=("exports",),
        ),
        Stage(
            "merged",
            "merge",
            f"{_HERE}.merge:merge_final",
            "Merge the final subnet into a plain transformers model.",
            needs=("best",),
            uses=("retrained", "finals"),
        ),
        Stage(
            "baselines",
            "baselines",
            f"{_HERE}.baselines:train_baselines",
            "Train the recipe's baselines.",
            asked="baselines",
            keys=("baselines", "baseline", "search.max_params", *_FOLLOWED),
            together=True,
        ),
        Stage(
            "test",
            "evaluate",
            f"{_HERE}.evaluate:evaluate_on_test",
            "Evaluate on the test split, once; write metrics.json and report.html.",
            needs=("search", "best", "merged"),
            uses=("retrained", "finals", "baselines"),
            keys=("task.metrics",),
            beside=("report.html",),
            result="metrics.json",
        ),
        Stage(
            "refitted",
            "refit",
            f"{_HERE}.refit:refit_winner",
            "Retrain the winner of the finals on train and validation rows, for deployment.",
            needs=("supernet", "search", "finals"),
            asked="finals",
            alone=True,
        ),
    )
}
"""Name -> stage, in the order in which a run does them."""


def function(path: str) -> Any:
    """A function of a stage, imported when it is needed."""
    return TypeAdapter(ImportString).validate_python(path)


def made_from(name: str) -> Iterator[Stage]:
    """The stages whose results are made from this one's, directly or not, in order."""
    stale = {name}
    for stage in STAGES.values():
        if stale.intersection(stage.needs + stage.uses) and stage.name not in stale:
            stale.add(stage.name)
            yield stage
