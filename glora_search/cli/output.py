"""Results on stdout: a table for people, JSON for programs; messages and bars go where they do not disturb."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from glora_search.files.text import plain_json
from glora_search.progress import console, set_up

results = Console(emoji=False)
"""Prints results, also where ``console`` is quiet."""


def begin(quiet: bool = False, as_json: bool = False) -> None:
    """What a command's ``--quiet`` and ``--json`` ask for."""
    set_up(console, quiet=quiet, stderr=as_json)
    set_up(results, quiet=as_json)


def result(text: str) -> None:
    """One line of a result, as it is."""
    results.print(text, markup=False, highlight=False, soft_wrap=True)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> None:
    """A table of results.

    Args:
        left: how many of the first columns are text; the others are figures.
    """
    made = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        text = index < left
        justify: Any = "left" if text else "right"
        widest = max(map(len, column.split()))  # a word of the head is never cut
        made.add_column(column, justify=justify, overflow="fold", no_wrap=not text, min_width=widest)
    for row in rows:
        made.add_row(*row)
    results.print(made, markup=False)


def emit(data: Any) -> None:
    """The result as JSON."""
    typer.echo(json.dumps(plain_json(data), indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    """numpy's and torch's numbers as Python's; anything else by its text."""
    return value.item() if hasattr(value, "item") else str(value)
