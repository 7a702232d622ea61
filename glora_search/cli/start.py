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
from glora_search.files.samples import sample, shown
from glora_search.files.shipped import find_shipped
from glora_search.files.text import parse_yaml, shell, write_text
from glora_search.progress import say
from glora_search.recipe.guess import guess
from glora_search.recipe.prompts import prompt_columns

HIDDEN = (None, "", -1)
"""What a test split has in place of labels."""


@app.command(rich_help_panel=START)
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[
        str | None, typer.Option(help="A hub name, a folder, or minilm.", show_default="depends on the task")
    ] = None,
    task: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The task, e.g. causal-lm.", show_default="from the data")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Rows to train on: a file, a folder, or a hub name.", show_default="train.csv"
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", help="The configuration of a data set on the hub.")
    ] = None,
    validation: Annotated[str | None, typer.Option(metavar="PATH", help="Rows for the search.")] = None,
    test: Annotated[str | None, typer.Option(metavar="PATH", help="Rows for the final test.")] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with the texts, or the prompts.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column with the labels.")] = None,
    response_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with the responses to learn.")
    ] = None,
    messages_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column with conversations.")
    ] = None,
    space: Annotated[
        str, typer.Option(help="A search space: a name or a file.", autocompletion=complete.spaces)
    ] = "glora-ranks",
    budget: Annotated[
        int | None, typer.Option(help="Maximum trainable adapter parameters.", show_default="depends on the task")
    ] = None,
    trials: Annotated[int, typer.Option(help="Number of subnets to evaluate.")] = 40,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented recipe to edit and run; task and columns are guessed from the data where they are clear.

    Example: glora-search init reviews.yaml --train reviews.csv --label-column stars --budget 300000, or
    glora-search init chats.yaml --train chats.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct
    """
    begin()
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise invalid("FILE", str(file), "a file in a folder that exists, e.g. recipe.yaml")
    if file.exists() and not force:
        raise invalid("FILE", str(file), "a file that does not exist yet; --force replaces it")
    if task is not None:
        from glora_search.recipe.schema import TASKS

        if task not in TASKS:
            raise invalid("--task", task, TASKS)
    if model is not None:
        _check_model(model)
    find_shipped("search_spaces", space, key="--space")
    columns = {"text_column": text_column, "label_column": label_column}
    columns |= {"response_column": response_column, "messages_column": messages_column}
    found = _found({"type": task, **columns}, train, config, {"validation": validation, "test": test})
    given = {
        "type": found["task"].get("type", task),
        "model": model,
        "space": space,
        "budget": budget,
        "trials": trials,
    }
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("._-") or "experiment"
    _write_recipe(file, name, {key: value for key, value in given.items() if value is not None}, found)


def _found(
    given: dict[str, str | None], train: str | None, config: str | None, others: dict[str, str | None]
) -> dict[str, Any]:
    """The task section and the data section, as far as the data tells."""
    splits = {split: path for split, path in others.items() if path is not None}
    if train is None:
        for key, value in {**given, "config": config, **splits}.items():
            if value is not None and key != "type":
                raise invalid(f"--{key.replace('_', '-')}", value, "nothing without --train, the rows to learn from")
        return {"task": {}, "data": None}
    first = sample("--train", train, config)
    found = guess(first, given)
    data = {**first.source, **found["data"]}
    for split, path in splits.items():
        if first.source["source"] in ("saved", "hub"):
            raise invalid(f"--{split}", path, f"nothing, since {train} has its own splits")
        other = sample(f"--{split}", path)
        if other.source["source"] != first.source["source"]:
            raise invalid(f"--{split}", path, f"{first.source['source']}, as --train is")
        if other.source.get("separator") != first.source.get("separator"):
            raise invalid(f"--{split}", path, f"a file with the separator of {train}")
        prompt = found["task"].get("prompt") or []
        for column in prompt_columns(prompt if isinstance(prompt, str) else prompt[-1]) if prompt else ():
            if column not in other.columns:
                raise invalid(f"--{split}", path, f"a file with the prompt's columns: {column} is not there")
        for key, column in found["data"].items():
            if column not in other.columns:
                allowed = f"a column of {path}: {shown(other.columns) or 'it is empty'}"
                raise invalid(f"--{key.replace('_', '-')}", column, allowed)
        data[split] = other.source["train"]
    for split, (name, rows) in first.splits.items():
        texts = [column for column in found["data"].values() if column not in first.images]
        hidden = [column for column in texts if all(row.get(column) in HIDDEN for row in rows)]
        if hidden:
            say(f"{split}: the split {name} of {train} is left out, since its {hidden[0]} is not known")
        else:
            data[split] = name
    return {**found, "data": data}


def _write_recipe(file: Path, name: str, values: dict[str, Any], found: dict[str, Any]) -> None:
    from glora_search.recipe.schema import Recipe
    from glora_search.recipe.template import recipe_template

    text = recipe_template(name, values, data=found["data"], prompt=found["task"].get("prompt"))
    recipe = validate(Recipe, parse_yaml(text), source="init")
    write_text(file, text)
    change = "" if found["data"] else f" and set its data ({getattr(recipe.data, 'train', '')} is an example)"
    what = f"{recipe.task.type} with {recipe.task.model}"
    result(f"{file}: written for {what}. Review it{change}, then run: {shell(['glora-search', 'run', str(file)])}")


def _check_model(model: str) -> None:
    folder = Path(model).expanduser()
    if model.startswith((".", "/", "~")) and not folder.is_dir():
        raise invalid("--model", model, "a folder that exists, a hub name, or minilm")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise invalid("--model", model, "a folder with a transformers model: it has no config.json")
