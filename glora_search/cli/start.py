"""``init``: a recipe to begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import START, app
from glora_search.cli.output import begin, result
from glora_search.errors import invalid
from glora_search.files.checked import validate
from glora_search.files.shipped import find_shipped
from glora_search.files.tables import read_header
from glora_search.files.text import write_text


@app.command(rich_help_panel=START)
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[str, typer.Option(help="A hub name, a folder, or minilm.")] = "minilm",
    train: Annotated[
        str | None, typer.Option(metavar="CSV", help="Rows to train on.", show_default="train.csv")
    ] = None,
    validation: Annotated[str | None, typer.Option(metavar="CSV", help="Rows for the search.")] = None,
    test: Annotated[str | None, typer.Option(metavar="CSV", help="Rows for the final test.")] = None,
    text_column: Annotated[str, typer.Option(help="The column with the texts.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column with the labels.")] = "label",
    space: Annotated[
        str, typer.Option(help="A search space: a name or a file.", autocompletion=complete.spaces)
    ] = "glora",
    budget: Annotated[int, typer.Option(help="Most trainable parameters of the adapter.")] = 60_000,
    trials: Annotated[int, typer.Option(help="Subnets to evaluate.")] = 500,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented recipe to edit and run.

    Example: glora-search init reviews.yaml --train reviews.csv --label-column stars --budget 300000
    """
    begin()
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise invalid("FILE", str(file), "a file in a folder that exists, e.g. recipe.yaml")
    if file.exists() and not force:
        raise invalid("FILE", str(file), "a file that does not exist yet; --force replaces it")
    _check_model(model)
    find_shipped("search_spaces", space, key="--space")
    for option, path in {"--train": train, "--validation": validation, "--test": test}.items():
        if path is not None:
            _check_columns(option, path, {"--text-column": text_column, "--label-column": label_column})
    given: dict[str, Any] = {"train": train, "validation": validation, "test": test, "model": model, "space": space}
    given |= {"text_column": text_column, "label_column": label_column, "budget": budget, "trials": trials}
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("._-") or "experiment"
    _write_recipe(file, name, {key: value for key, value in given.items() if value is not None})


def _write_recipe(file: Path, name: str, values: dict[str, Any]) -> None:
    import yaml

    from glora_search.recipe.schema import Recipe
    from glora_search.recipe.template import recipe_template

    text = recipe_template(name, values)
    validate(Recipe, yaml.safe_load(text), source="init")
    write_text(file, text)
    change = "" if "train" in values else " (its data first: train.csv is an example)"
    result(f"{file}: written. Review it{change}, then run: glora-search run {file}")


def _check_model(model: str) -> None:
    folder = Path(model).expanduser()
    if model.startswith((".", "/", "~")) and not folder.is_dir():
        raise invalid("--model", model, "a folder that exists, a hub name, or minilm")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise invalid("--model", model, "a folder with a transformers model: it has no config.json")


def _check_columns(option: str, path: str, columns: dict[str, str]) -> None:
    """Look at a csv file's header line, long before the whole file is read."""
    try:
        _, header = read_header(Path(path))
    except (OSError, ValueError) as error:
        raise invalid(option, path, f"a csv file with a header line ({error})") from None
    for name, column in columns.items():
        if column not in header:
            raise invalid(name, column, f"a column of {path}: {', '.join(header) or 'it is empty'}")
