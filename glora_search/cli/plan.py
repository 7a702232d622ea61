"""``plan``: what a run takes, before it starts."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli.app import RUN, Json, app
from glora_search.cli.output import begin, emit, result, table
from glora_search.cli.run import Overrides, RecipeFile
from glora_search.silence import silence_libraries


@app.command(rich_help_panel=RUN)
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    timed: Annotated[
        bool, typer.Option("--time/--no-time", help="Load the model and time a few steps, to estimate minutes.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show parameter counts, and the steps, minutes, and memory of each stage; nothing is trained.

    Example: glora-search plan reviews.yaml --set search.max_params=100000
    """
    begin(as_json=as_json)
    silence_libraries()
    from glora_search.recipe.schema import Recipe
    from glora_search.run.plan import plan as planned

    with tempfile.TemporaryDirectory() as folder:
        found = planned(Recipe.load(recipe, overrides or ()), Path(folder) / "plan", timed=timed)
    if as_json:
        emit({**asdict(found), "stages": {name: _stage(stage) for name, stage in found.stages.items()}})
        return
    table("parameters", ("part", "number"), [(name, f"{count:,}") for name, count in found.parameters.items()])
    kinds = list(asdict(next(iter(found.stages.values())).memory))
    rows = [
        (
            name,
            "" if stage.steps is None else f"{stage.steps:,}",
            "" if stage.minutes is None else f"{stage.minutes:.1f}",
            *(_size(size) for size in asdict(stage.memory).values()),
            _size(stage.memory.total),
        )
        for name, stage in found.stages.items()
    ]
    table("stages, with memory in MB (at least)", ("stage", "steps", "minutes", *kinds, "in all"), rows)
    result("steps: of one full training; for the search, the number of subnets to score. minutes: of the whole stage")


def _stage(stage: Any) -> dict[str, Any]:
    return {**asdict(stage), "memory": {**asdict(stage.memory), "total": stage.memory.total}}


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f}"
