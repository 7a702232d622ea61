"""``spaces``: the search spaces that come with the package, and one's own, with or without a model."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import START, Json, app
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import invalid
from glora_search.files.shipped import find_shipped, shipped_folder
from glora_search.silence import silence_libraries

spaces = typer.Typer(help="List and show search spaces: which paths each layer may have.")
app.add_typer(spaces, name="spaces", rich_help_panel=START)


@spaces.command("list")
def list_(as_json: Json = False) -> None:
    """List the spaces that ship with the package."""
    begin(as_json=as_json)
    from glora_search.space.schema import SearchSpace

    rows: list[dict[str, Any]] = []
    for path in sorted(shipped_folder("search_spaces").glob("*.yaml")):
        space = SearchSpace.load(path)
        layer = space.layer()
        choices = math.prod(len(gene.choices) for gene in layer.genes)
        rows.append(
            {
                "name": path.stem,
                "description": space.description,
                "genes": [gene.path for gene in layer.genes],
                "choices_per_layer": choices,
            }
        )
    if as_json:
        emit(rows)
        return
    columns = ("name", "description", "genes per layer", "choices per layer")
    cells = [
        (row["name"], row["description"], ", ".join(row["genes"]), f"{row['choices_per_layer']:,}") for row in rows
    ]
    table("", columns, cells, left=3)


@spaces.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A space's name or file.", autocompletion=complete.spaces)
    ],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Bind it to a model: a hub name, a folder, or minilm.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a space and, with a model, its layers, genes and sizes.

    Example: glora-search spaces show glora-ranks --model roberta-base
    """
    begin(as_json=as_json)
    silence_libraries()
    from glora_search.space.schema import SearchSpace

    path = find_shipped("search_spaces", name, key="NAME")
    space = SearchSpace.load(path)
    bound = None if model is None else _describe(space, model)
    if as_json:
        emit({"name": space.name, "file": str(path), "space": space.model_dump(), "model": bound})
        return
    result(path.read_text(encoding="utf-8").rstrip())
    if bound is None:
        return
    result("")
    table(
        f"bound to {model}",
        ("layer", "in", "out", "bias", "genes"),
        [
            (row["name"], str(row["in"]), str(row["out"]), "yes" if row["bias"] else "no", ", ".join(row["genes"]))
            for row in bound["layers"]
        ],
    )
    smallest, largest = bound["params"]["smallest"], bound["params"]["largest"]
    result(f"{len(bound['layers'])} layers, {bound['genes']} genes, about 10^{bound['log10_genomes']:.0f} genomes")
    result(f"adapter parameters: from {smallest:,} to {largest:,}")
    if bound["uniform_methods"]:
        rows = [(method, f"{params:,}") for method, params in bound["uniform_methods"].items()]
        table("uniform methods in this space", ("method", "adapter parameters"), rows)


def _describe(space: Any, model: str) -> dict[str, Any]:
    bound = space.bind(_skeleton(model))
    layers = [
        {
            "name": layer.name,
            "in": layer.in_features,
            "out": layer.out_features,
            "bias": layer.has_bias,
            "genes": [gene.path for gene in layer.genes],
        }
        for layer in bound.layers
    ]
    methods = {name: bound.params(genome) for name, genome in bound.uniform_methods().items()}
    return {
        "layers": layers,
        "genes": len(bound.genes),
        "log10_genomes": math.log10(bound.count()),
        "params": {"smallest": bound.params(bound.smallest), "largest": bound.params(bound.largest)},
        "uniform_methods": dict(sorted(methods.items(), key=lambda item: item[1])),
    }


def _skeleton(model: str) -> Any:
    """The model's modules without their weights; only its configuration is read."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from glora_search.tasks.models import resolve_model

    try:
        config = AutoConfig.from_pretrained(resolve_model(model))
        classifies = type(config) in AutoModelForSequenceClassification._model_mapping
        with torch.device("meta"):
            return (AutoModelForSequenceClassification if classifies else AutoModel).from_config(config)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        allowed = f"a folder with a transformers model, a name on a hub that can be reached, or 'minilm' ({reason})"
        raise invalid("--model", model, allowed) from error
