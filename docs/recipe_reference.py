"""Writes ``docs/recipe.md``, the reference of a recipe's keys, from the schema that checks recipes.

python docs/recipe_reference.py
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from glora_search.recipe.arguments import STOPPING, TRAINING_DEFAULTS
from glora_search.recipe.schema import Recipe
from glora_search.vocabulary import LR_GROUPS

PAGE = Path(__file__).with_name("recipe.md")

INTRODUCTION = """# Recipe

<!-- Written by docs/recipe_reference.py; `make docs` writes it anew. -->

A recipe is one YAML file. Every key is checked before anything is done: a wrong one is refused with its value and with
what is allowed. `glora-search run RECIPE --set key.sub=value` changes a key for one run; `recipe.yaml` in a run folder
has every default written out. [Getting started](getting-started.md) builds one step by step.
"""


def describe(cls: type[BaseModel]) -> dict[str, str]:
    """Key -> what the class's docstring, or one that it inherits, says of it under ``Attributes``."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        _, _, attributes = inspect.cleandoc(owner.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    (\w[\w, ]*): (.+(?:\n {6,}.+)*)", attributes, flags=re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), written(text))
    return found


def written(text: str) -> str:
    """A docstring's text as Markdown for people who write YAML."""
    return re.sub(r"\bNone\b", "`null`", " ".join(text.split()).replace("``", "`"))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field can hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def type_of(schema: dict[str, Any]) -> str:
    """A JSON schema's type, in a word or two."""
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            kinds = [type_of(part) for part in schema[several]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "nothing"))
    if schema.get("type") == "array":
        return f"list of {type_of(schema['items'])}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    kind = names.get(schema.get("type", ""), "nothing" if schema.get("type") == "null" else "mapping")
    limits = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "up to {}",
        "exclusiveMaximum": "below {}",
    }
    bounds = [text.format(schema[name]) for name, text in limits.items() if name in schema]
    return " ".join([kind, *bounds])


def default_of(field: FieldInfo) -> str:
    """A field's default as it is written in YAML."""
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).replace("...", "").strip()
    return f"`{text}`"


def table(cls: type[BaseModel], names: Iterable[str]) -> str:
    """These keys of a section, but those that are sections themselves.

    Raises:
        KeyError: the class's docstring says nothing of a key.
    """
    texts, schema = describe(cls), cls.model_json_schema()["properties"]
    rows = [
        f"| `{(key := field.alias or name)}` | {type_of(schema[key])} | {default_of(field)} | {texts[name]} |"
        for name in names
        if not models_in((field := cls.model_fields[name]).annotation)
    ]
    return "\n".join(["| key | takes | default | |", "| --- | --- | --- | --- |", *rows]) if rows else ""


def section(key: str, cls: type[BaseModel], level: int = 2, said: Sequence[str] = ()) -> list[str]:
    """A section's heading, its first line and its keys, without those said before; then the sections within."""
    names = [name for name in cls.model_fields if name not in said]
    parts = [f"{'#' * level} `{key}`", written((inspect.getdoc(cls) or "").split("\n\n")[0]), table(cls, names)]
    for name in names:
        field = cls.model_fields[name]
        parts += sections(f"{key}.{field.alias or name}", field, level + 1)
    return parts


def sections(key: str, field: FieldInfo, level: int = 2) -> list[str]:
    """What a field holds: nothing but a value, a section, or one of several sections told apart by a key."""
    models = models_in(field.annotation)
    if len(models) < 2:
        return [part for model in models for part in section(key, model, level)]
    tag = str(field.discriminator)
    shared = [name for name in models[0].model_fields if all(name in model.model_fields for model in models)]
    shared.remove(tag)
    parts = [f"{'#' * level} `{key}`", f"One of {len(models)}, told apart by `{tag}`. All of them take"]
    parts.append(table(models[0], shared))
    for model in models:
        names = " or ".join(typing.get_args(model.model_fields[tag].annotation))
        parts += section(f"{key}: {{{tag}: {names}}}", model, level + 1, [*shared, tag])
    return parts


def training() -> str:
    """What is the same in all sections with ``training`` and ``lr_factors``."""

    def lines(settings: dict[str, Any]) -> str:
        rows = (f"| `{key}` | `{yaml.safe_dump(value).splitlines()[0]}` |" for key, value in settings.items())
        return "\n".join(["| key | default |", "| --- | --- |", *rows])

    def names(found: Iterable[str]) -> str:
        return ", ".join(f"`{name}`" for name in found)

    own = {key: value for key, value in TRAINING_DEFAULTS.items() if key != "dataloader_pin_memory"}
    return f"""## `training`, wherever it stands

Any field of `transformers.TrainingArguments` but `output_dir`, which is the run folder's. What is not written is as in
`TrainingArguments`, but for these:

{lines(own)}

`dataloader_pin_memory` is true where there is a GPU. `supernet.patience` sets {names(STOPPING)}.

## `lr_factors`, wherever it stands

Kind of path -> what the learning rate is multiplied by; a kind of one path comes before its kind. The keys are
{names(LR_GROUPS)}."""


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION.strip(), "## The top", table(Recipe, Recipe.model_fields)]
    for name, field in Recipe.model_fields.items():
        parts += sections(field.alias or name, field)
    example = Recipe.load("quickstart").dump().strip()
    parts += [training(), "## The quickstart, every default written out", f"```yaml\n{example}\n```"]
    return "\n\n".join(filter(None, parts)) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE}: written")
