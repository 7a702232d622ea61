"""Commands that work: all stages of a recipe, or one of a run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import RUN, STAGE, Json, Quiet, RunPath, SharedStorage, app, settle
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import UserError, invalid
from glora_search.files.shipped import find_shipped
from glora_search.files.text import shell
from glora_search.progress import say
from glora_search.run.stages import STAGES, Stage
from glora_search.silence import silence_libraries

Again = Annotated[
    bool, typer.Option("--again", help="Repeat the stage, and remove everything made from its old result.")
]
RecipeFile = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's YAML file, or the name of a shipped one, such as quickstart.",
        autocompletion=complete.recipes,
    ),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. search.trials=50.")
]
RunDir = Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<the recipe's name>")]


@app.command(rich_help_panel=RUN)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine that share the trainings of the finals.")] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run all stages: supernet, search, export, finals (or retrain), merge, baselines, and at the end the test.

    Example: glora-search run reviews.yaml --set search.trials=50 --run-dir runs/try --workers 4
    """
    _check_counts({"--workers": workers})
    begin(quiet, as_json)
    current = _create(recipe, overrides, run_dir, workers=workers)
    _show(current, current.all_stages(workers=workers), as_json)


@app.command(rich_help_panel=STAGE)
def prepare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a recipe and create its run folder, for the single-stage commands."""
    begin(quiet, as_json)
    current = _create(recipe, overrides, run_dir, again=True)
    if not as_json:
        from glora_search.run import cost

        say(cost.said(current.context), "dim")
    following = current.view.command(_next(current.view) or "report")
    if as_json:
        emit({"folder": str(current.folder), "next": following})
    else:
        say(f"{current.folder}: ready; next: {following}")


def _next(view: Any) -> str | None:
    """The command of the first stage that is not done; None where all are."""
    left = (one.command for one in STAGES.values() if view.asks_for(one) and view.done(one.name) is None)
    return next(left, None)


def _create(
    recipe: str, overrides: list[str] | None, run_dir: Path | None, *, again: bool = False, workers: int = 1
) -> Any:
    find_shipped("experiments", recipe, key="recipe")  # checked before torch is imported
    silence_libraries()
    from glora_search.recipe.schema import Recipe
    from glora_search.run.runner import Run

    settle()
    loaded = Recipe.load(recipe, overrides or [])
    if workers > 1 and loaded.finals is None:
        raise invalid("--workers", workers, "1, since the recipe has no section finals")
    return Run.create(loaded, run_dir, again=again)


def _check_counts(options: dict[str, int | None]) -> None:
    for option, value in options.items():
        if value is not None and value < 1:
            raise invalid(option, value, "1 or more")


def _open(folder: Path) -> Any:
    from glora_search.run.folder import RunFolder

    RunFolder(folder)
    silence_libraries()
    from glora_search.run.runner import Run

    settle()
    return Run(folder)


def _do(run: Path, stage: str, again: bool, quiet: bool, as_json: bool) -> None:
    """Do one stage and print what came of it."""
    begin(quiet, as_json)
    current = _open(run)
    if again:
        current.forget(stage)
    _finish(current, stage, as_json)


def _finish(run: Any, stage: str, as_json: bool, **options: Any) -> None:
    found = run.do(stage, **options)
    if stage == "test":
        _show(run, found, as_json)
    else:
        _summary(run, stage, found, as_json)


def _stage_command(stage: Stage) -> None:
    """The command of a stage without options of its own."""

    def do(run: RunPath, again: Again = False, quiet: Quiet = False, as_json: Json = False) -> None:
        _do(run, stage.name, again, quiet, as_json)

    do.__doc__ = stage.help
    app.command(stage.command, rich_help_panel=STAGE)(do)


def search_(
    run: RunPath,
    again: Again = False,
    workers: Annotated[int, typer.Option(help="Worker processes on this machine.")] = 1,
    storage: SharedStorage = None,
    trials: Annotated[int | None, typer.Option(help="Continue to this many trials; changes the run's recipe.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search for the best subnet under the budget; run it again, here or elsewhere, to add workers.

    Example: glora-search search runs/reviews --workers 4
    """
    _check_counts({"--workers": workers, "--trials": trials})
    begin(quiet, as_json)
    current = _open(run)
    if trials is not None:
        recipe = current.context.recipe.model_copy(deep=True)
        recipe.search.trials = trials
        if Path(recipe.space).is_absolute() and not Path(recipe.space).is_file():
            recipe.space = str((run / "space.yaml").resolve())  # the run has a copy
        current = type(current).create(recipe, run, storage=storage)
    if again:
        from glora_search.run.search import forget_shared_search

        current.forget("search")
        if storage is not None:
            forget_shared_search(current.view, storage)
    _finish(current, "search", as_json, workers=workers, storage=storage)


def finals(
    run: RunPath,
    again: Again = False,
    workers: Annotated[int, typer.Option(help="Worker processes on this machine.")] = 1,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Race the best subnets against LoRA and other uniform methods; run it again, here or elsewhere, to add workers.

    Example: glora-search finals runs/reviews --workers 4
    """
    _check_counts({"--workers": workers})
    begin(quiet, as_json)
    current = _open(run)
    if again:
        current.forget("finals")
    _finish(current, "finals", as_json, workers=workers)


def export(
    run: RunPath,
    again: Again = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="glora: the best subnet as a glora-search adapter (RUN/best). peft, lora: the final subnet as peft's "
            "own GLoRA or LoRA (RUN/exports), which load without glora-search. merged: a plain model (RUN/merged).",
        ),
    ] = "glora",
    pad: Annotated[
        bool,
        typer.Option("--pad", help="With --format lora: give all layers one rank, as vLLM and llama.cpp need."),
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the best subnet as an adapter folder, or in a format that loads without glora-search.

    Example: glora-search export runs/reviews --format peft
    """
    if pad and form != "lora":
        raise invalid("--format", form, "lora with --pad, which gives all layers of a LoRA one rank")
    stages = {"glora": "best", "merged": "merged"}
    if form in stages:
        _do(run, stages[form], again, quiet, as_json)
        return
    begin(quiet, as_json)
    current = _open(run)
    from glora_search.adapters.export import STOCK_FORMATS
    from glora_search.run.formats import export_as

    if form not in STOCK_FORMATS:
        raise invalid("--format", form, ["glora", *STOCK_FORMATS, "merged"])
    if again:
        raise UserError(f"--again: not with --format {form}, which is always written anew")
    folder = export_as(current, form, pad=pad)
    if as_json:
        emit({"folder": str(folder), "format": form})
    else:
        result(f"{folder}: the final subnet as an adapter that needs only peft")


WITH_OPTIONS: dict[str, Callable[..., None]] = {"search": search_, "best": export, "finals": finals}
"""Stages whose commands have options of their own."""

for _stage in STAGES.values():
    if _stage.name in WITH_OPTIONS:
        app.command(_stage.command, rich_help_panel=STAGE)(WITH_OPTIONS[_stage.name])
    else:
        _stage_command(_stage)


def _summary(run: Any, stage: str, found: dict[str, Any], as_json: bool) -> None:
    folder = run.folder / stage
    if as_json:
        emit({"folder": str(folder), **found})
        return
    facts = {k: v for k, v in found.items() if not isinstance(v, (dict, list)) and k != "genomes"}
    facts |= {k: v for k, v in found.get("best", {}).items() if k != "genome"}
    shown = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
    result(f"{folder}: {shown}")


def _show(run: Any, metrics: dict[str, Any], as_json: bool) -> None:
    from glora_search.report import BUDGET_COLUMNS, budget_rows, result_columns, result_rows, write_report
    from glora_search.run.predict import usage

    page = write_report(run.folder)
    if as_json:
        emit({"folder": str(run.folder), **metrics})
        return
    budget = "no budget" if metrics["budget"] is None else f"budget {metrics['budget']:,} parameters"
    shown = metrics["metrics"][0]["name"] if metrics.get("metrics") else metrics["metric"]
    table(f"{metrics['name']}: {shown}, {budget}", result_columns(metrics), result_rows(metrics))
    budgets = budget_rows(run.view)
    if budgets:
        table("trained adapters under each budget", BUDGET_COLUMNS, budgets)
    for note in metrics["notes"]:
        result(f"Note: {note}.")
    difference = metrics["merged"]["max_abs_logit_difference"]
    minutes, cost = sum(metrics["seconds"].values()) / 60, metrics.get("lora_trainings")
    cost = "" if cost is None else f", as long as {cost:.1f} LoRA trainings"
    say(f"Merged and unmerged logits differ by at most {difference:.1e}. The stages took {minutes:.1f} min{cost}.")
    say(f"Report: {page}")
    say(f"Try it: {run.view.command('predict', 'Your text here')}")
    say("Use the merged model with transformers alone:")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    say(f'  {shell([str(python)])} -c "{usage(run.view)}"')
