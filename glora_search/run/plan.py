"""What a run takes before it starts: parameters, steps, memory, and minutes by a short timing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glora_search.finals.rungs import whole
from glora_search.progress import say
from glora_search.recipe.schema import Recipe
from glora_search.run.context import Context
from glora_search.run.cost import estimate
from glora_search.run.launch import processes
from glora_search.run.making import make, resolved
from glora_search.run.memory import Memory, sizes
from glora_search.run.prepare import check_space
from glora_search.training.baselines import baseline_settings
from glora_search.training.loop import steps_for, training_arguments


@dataclass(frozen=True)
class Planned:
    """A stage.

    Attributes:
        memory: bytes, by kind.
        steps: of one training; of the search, how many subnets it scores.
        minutes: None where nothing was timed.
    """

    memory: Memory
    steps: int | None
    minutes: float | None


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        parameters: what is counted -> how many.
        stages: command -> what it takes.
    """

    parameters: dict[str, int]
    stages: dict[str, Planned]


def plan(recipe: Recipe, folder: Path, *, timed: bool = True) -> Plan:
    """Plan a run.

    Args:
        folder: a run folder is made there, and nothing is done in it.
        timed: load the model and time a few steps and batches.

    Raises:
        UserError: the recipe cannot be run.
    """
    make(folder, resolved(recipe))
    run = Context(folder)
    found = sizes(run.recipe, run.task)
    check_space(run.recipe, found.space)
    rows = len(run.task.train)

    def steps(settings: dict[str, object], together: int = 1) -> int:
        return steps_for(training_arguments(settings, Path("unused"), recipe.seed), rows, together)

    counted = {
        "train-supernet": steps(recipe.supernet.training, processes()),
        "search": recipe.search.trials,
        "retrain": steps(recipe.retrain.training, processes()),
        "baselines": steps(baseline_settings(recipe, rows, processes()), processes()),
        **({"finals": whole(steps(recipe.finals.training))} if recipe.finals is not None else {}),
    }
    minutes: dict[str, float] = {}
    if timed:
        say("timing a few steps of LoRA and a few batches of validation rows")
        cost = estimate(run)
        minutes = {name: cost.minutes(seconds) for name, seconds in cost.seconds.items()}
    stages = {name: Planned(memory, counted.get(name), minutes.get(name)) for name, memory in found.stages.items()}
    return Plan(found.parameters, stages)
