"""The command line: from a recipe to a merged model, at once or stage by stage."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find the best per-layer GLoRA adapter for a Hugging Face model.\n\n"
    "[bold]run[/bold] does everything; the other commands do one stage of a run folder. A stage that is done is not "
    "done again, and an interrupted one goes on where it was.",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, e.g. runs/quickstart.")]
Again = Annotated[bool, typer.Option("--again", help="Do the stage anew; what was made from its result goes too.")]


RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file, or 'quickstart'.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. search.trials=50.")
]
RunDir = Annotated[Path | None, typer.Option(help="The run folder.", show_default="runs/<the recipe's name>")]


@app.command()
def run(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Run all stages: supernet, search, export, retrain, merge, baselines, and the test at the end."""
    current = _create(recipe, overrides, run_dir)
    _show(current, current.all_stages())


@app.command()
def prepare(recipe: RecipeFile, overrides: Overrides = None, run_dir: RunDir = None) -> None:
    """Check a recipe and make its run folder, for the commands that do one stage."""
    from glora_search.progress import console

    current = _create(recipe, overrides, run_dir)
    console.print(f"{current.folder}: ready; next: glora-search train-supernet {current.folder}", highlight=False)


def _create(recipe: str, overrides: list[str] | None, run_dir: Path | None) -> Any:
    from glora_search.pipeline import Run
    from glora_search.recipe import Recipe

    return Run.create(Recipe.load(recipe, overrides or []), run_dir)


def _stage_command(command: str, stage: str, method: str, text: str) -> None:
    def do(run: RunFolder, again: Again = False) -> None:
        from glora_search.pipeline import Run

        current = Run(run)
        if again:
            current.forget_from(stage)
        result = getattr(current, method)()
        if stage == "test":
            _show(current, result)
        else:
            _summary(current, stage, result)

    do.__doc__ = text
    app.command(command)(do)


_stage_command("train-supernet", "supernet", "train_supernet", "Train the supernet: all choices of every layer.")


@app.command("search")
def search_(
    run: RunFolder,
    again: Again = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Shared with other machines: postgresql://..., grpc://host:port.")
    ] = None,
) -> None:
    """Search the best subnet under the budget; call it again, also elsewhere, to add workers."""
    from glora_search.pipeline import Run

    current = Run(run)
    if again:
        current.forget_from("search")
        if storage is not None:
            current.forget_shared_search(storage)
    _summary(current, "search", current.search(workers=workers, storage=storage))


@app.command()
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
) -> None:
    """Write the best subnet as an adapter folder, or in a format that needs no glora-search."""
    from glora_search.errors import UserError, invalid
    from glora_search.export import STOCK_FORMATS
    from glora_search.pipeline import Run
    from glora_search.progress import console

    stages = {"glora": "best", "merged": "merged"}
    if form not in stages and form not in STOCK_FORMATS:
        raise invalid("--format", form, ["glora", *STOCK_FORMATS, "merged"])
    current = Run(run)
    if form in stages:
        if again:
            current.forget_from(stages[form])
        result = current.export() if form == "glora" else current.merge()
        _summary(current, stages[form], result)
        return
    if again:
        raise UserError(f"--again: not with --format {form}, which is written anew each time")
    folder = current.export_as(form)
    console.print(f"{folder}: an adapter of the final subnet, for peft alone", highlight=False)


_stage_command("retrain", "retrained", "retrain", "Train the best subnet on.")
_stage_command("merge", "merged", "merge", "Fold the final subnet into a plain transformers model.")
_stage_command("baselines", "baselines", "baselines", "Train the recipe's baselines.")
_stage_command("evaluate", "test", "evaluate", "Read the test split, once, and write metrics.json and report.html.")


@app.command()
def report(run: RunFolder) -> None:
    """Write report.html from what is done so far: one page that works offline, for any browser."""
    from glora_search.pipeline import Run
    from glora_search.progress import console
    from glora_search.report import write_report

    console.print(f"Report: {write_report(Run(run))}", highlight=False)


def _summary(run: Any, stage: str, result: dict[str, Any]) -> None:
    from glora_search.progress import console

    facts = {k: v for k, v in result.items() if not isinstance(v, (dict, list)) and k != "genomes"}
    facts |= {k: v for k, v in result.get("best", {}).items() if k != "genome"}
    shown = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )
    console.print(f"{run.folder / stage}: {shown}", highlight=False)


def _show(run: Any, metrics: dict[str, Any]) -> None:
    from glora_search.progress import console
    from glora_search.report import result_rows
    from glora_search.tasks import task_class

    budget = "no budget" if metrics["budget"] is None else f"budget {metrics['budget']:,} parameters"
    table = Table(title=f"{metrics['name']}: {metrics['metric']}, {budget}", title_justify="left")
    for column in ("model", "adapter parameters", "validation", "test"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row in result_rows(metrics):
        table.add_row(*row)
    console.print(table)
    for note in metrics["notes"]:
        console.print(f"Note: {note}.", highlight=False)
    difference = metrics["merged"]["max_abs_logit_difference"]
    minutes = sum(metrics["seconds"].values()) / 60
    console.print(
        f"Merged and unmerged logits differ by at most {difference:.1e}. The stages took {minutes:.1f} min.",
        highlight=False,
    )
    console.print(f"Report: {run.folder / 'report.html'}", highlight=False)
    console.print("Use the merged model, with transformers alone:", highlight=False)
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    usage = task_class(run.recipe.task.type).usage(str(run.folder / "merged"))
    console.out(f'  {python} -c "{usage}"', highlight=False)


def main() -> None:
    """Run the command line; what the user got wrong is one message and exit code 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import huggingface_hub
    import transformers

    from glora_search.errors import UserError, invalid

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            allowed = "1: a run is one process; SupernetTrainer in your own script can be launched with several"
            raise invalid("WORLD_SIZE", os.environ["WORLD_SIZE"], allowed)
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
