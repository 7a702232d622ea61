"""Prompts: templates with the names of columns in braces."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence


def prompt_columns(template: str) -> list[str]:
    """The columns that a prompt template names; empty if the text is not a valid template."""
    try:
        fields = [field for field in string.Formatter().parse(template) if field[1] is not None]
    except ValueError:
        return []
    names = [str(name) for _, name, form, conversion in fields if not form and conversion is None]
    plain = len(names) == len(fields) and all(name.isidentifier() for name in names)
    return list(dict.fromkeys(names)) if plain else []


def columns_of(templates: Sequence[str]) -> list[str]:
    """The columns that any of the templates names."""
    return list(dict.fromkeys(name for template in templates for name in prompt_columns(template)))


def template_for(templates: Sequence[str], row: Mapping[str, str]) -> str:
    """The template that a row uses: the first one whose columns all have text, else the last."""
    fitting = (one for one in templates if all(row[name].strip() for name in prompt_columns(one)))
    return next(fitting, templates[-1])
