"""Commands that work: all stages of a recipe, or one of a run folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import RUN, STAGE, Json, Quiet, RunFolder, SharedStorage, app, silence_libraries
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import UserError, invalid
from glora_search.progress import say
from glora_search.run.stages import COMMANDS

Again = Annotated[bool, typer.Option("--again", help="Do the stage anew; what was made from its result goes too.")]
RecipeFile = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A recipe's YAML file, or 'quickstart'.", autocompletion=complete.recipes),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. search.trials=50.")
]
RunDir = Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<the recipe's name>")]


@app.command(rich_help_panel=RUN)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run all stages: supernet, search, export, retrain, merge, baselines, and the test at the end.

    Example: glora-search run reviews.yaml --set search.trials=50 --run-dir runs/try
    """
    begin(quiet, as_json)
    current = _create(recipe, overrides, run_dir)
    _show(current, current.all_stages(), as_json)


@app.command(rich_help_panel=STAGE)
def prepare(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run_dir: RunDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check a recipe and make its run folder, for the commands that do one stage."""
    begin(quiet, as_json)
    current = _create(recipe, overrides, run_dir)
    following = f"glora-search train-supernet {current.folder}"
    if as_json:
        emit({"folder": str(current.folder), "next": following})
    else:
        say(f"{current.folder}: ready; next: {following}")


def _create(recipe: str, overrides: list[str] | None, run_dir: Path | None) -> Any:
    silence_libraries()
    from glora_search.recipe.schema import Recipe
    from glora_search.run.pipeline import Run

    return Run.create(Recipe.load(recipe, overrides or []), run_dir)


def _open(folder: Path) -> Any:
    silence_libraries()
    from glora_search.run.pipeline import Run

    return Run(folder)


def _stage_command(stage: str, method: str, text: str) -> None:
    def do(run: RunFolder, again: Again = False, quiet: Quiet = False, as_json: Json = False) -> None:
        begin(quiet, as_json)
        current = _open(run)
        if again:
            current.forget_from(stage)
        found = getattr(current, method)()
        if stage == "test":
            _show(current, found, as_json)
        else:
            _summary(current, stage, found, as_json)

    do.__doc__ = text
    app.command(COMMANDS[stage], rich_help_panel=STAGE)(do)


_stage_command("supernet", "train_supernet", "Train the supernet: all choices of every layer.")


@app.command("search", rich_help_panel=STAGE)
def search_(
    run: RunFolder,
    again: Again = False,
    workers: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    storage: SharedStorage = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Search the best subnet under the budget; call it again, also elsewhere, to add workers.

    Example: glora-search search runs/reviews --workers 4
    """
    begin(quiet, as_json)
    if workers < 1:
        raise invalid("--workers", workers, "1 or more")
    current = _open(run)
    if again:
        current.forget_from("search")
        if storage is not None:
            current.forget_shared_search(storage)
    _summary(current, "search", current.search(workers=workers, storage=storage), as_json)


@app.command(rich_help_panel=STAGE)
def export(
    run: RunFolder,
    again: Again = False,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="glora: the search's best subnet as this package's adapter, RUN/best. Of the final subnet: peft (as "
            "peft's own GLoRA) and lora (as peft's LoRA), adapters in RUN/exports that load without this package; "
            "merged, a plain model, RUN/merged.",
        ),
    ] = "glora",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write the best subnet as an adapter folder, or in a format that needs no glora-search.

    Example: glora-search export runs/reviews --format peft
    """
    begin(quiet, as_json)
    current = _open(run)
    from glora_search.adapters.export import STOCK_FORMATS

    stages = {"glora": "best", "merged": "merged"}
    if form not in stages and form not in STOCK_FORMATS:
        raise invalid("--format", form, ["glora", *STOCK_FORMATS, "merged"])
    if form in stages:
        if again:
            current.forget_from(stages[form])
        found = current.export() if form == "glora" else current.merge()
        _summary(current, stages[form], found, as_json)
        return
    if again:
        raise UserError(f"--again: not with --format {form}, which is written anew each time")
    folder = current.export_as(form)
    if as_json:
        emit({"folder": str(folder), "format": form})
    else:
        result(f"{folder}: an adapter of the final subnet, for peft alone")


_stage_command("retrained", "retrain", "Train the best subnet on.")
_stage_command("merged", "merge", "Fold the final subnet into a plain transformers model.")
_stage_command("baselines", "baselines", "Train the recipe's baselines.")
_stage_command("test", "evaluate", "Read the test split, once, and write metrics.json and report.html.")


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
    from glora_search.report import result_rows
    from glora_search.tasks import task_class

    if as_json:
        emit({"folder": str(run.folder), **metrics})
        return
    budget = "no budget" if metrics["budget"] is None else f"budget {metrics['budget']:,} parameters"
    columns = ("model", "adapter parameters", "validation", "test")
    table(f"{metrics['name']}: {metrics['metric']}, {budget}", columns, result_rows(metrics))
    for note in metrics["notes"]:
        result(f"Note: {note}.")
    difference = metrics["merged"]["max_abs_logit_difference"]
    minutes = sum(metrics["seconds"].values()) / 60
    say(f"Merged and unmerged logits differ by at most {difference:.1e}. The stages took {minutes:.1f} min.")
    say(f"Report: {run.folder / 'report.html'}")
    say(f'Try it: glora-search predict {run.folder} "Your text here"')
    say("Use the merged model, with transformers alone:")
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    say(f'  {python} -c "{task_class(run.recipe.task.type).usage(str(run.folder / "merged"))}"')
