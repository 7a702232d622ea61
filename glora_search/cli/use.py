"""Commands for what was found: ``report``, ``compare`` and ``predict``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import USE, Json, RunPath, app
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import invalid
from glora_search.silence import silence_libraries


@app.command(rich_help_panel=USE)
def report(run: RunPath, as_json: Json = False) -> None:
    """Write report.html from what is done so far: one page that works offline.

    Example: glora-search report runs/reviews
    """
    begin(as_json=as_json)
    silence_libraries()
    from glora_search.report import write_report

    page = write_report(run)
    if as_json:
        emit({"report": str(page)})
    else:
        result(f"Report: {page}")


@app.command(rich_help_panel=USE)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN RUN...", help="Run folders.", autocompletion=complete.run_folders),
    ],
    as_json: Json = False,
) -> None:
    """Compare runs: their settings and results, side by side.

    Example: glora-search compare runs/reviews runs/reviews-small
    """
    begin(as_json=as_json)
    from glora_search.run.compare import compare as read
    from glora_search.run.folder import RunFolder

    rows, notes = read([RunFolder(folder) for folder in runs])
    if as_json:
        emit({"runs": rows, "notes": notes})
        return
    columns = {
        "run": "run", "model": "model", "data": "data", "space": "space", "sampling": "supernet sampling",
        "sampler": "sampler", "budget": "budget", "params": "adapter params", "validation": "validation",
        "test": "test", "minutes": "minutes",
    }  # fmt: skip
    table("", list(columns.values()), [[_cell(key, row[key]) for key in columns] for row in rows], left=6)
    for note in notes:
        result(f"Note: {note}.")


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "none" if key == "budget" else "-"
    if isinstance(value, float):
        return f"{value:.1f}" if key == "minutes" else f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command(rich_help_panel=USE)
def predict(
    run: RunPath,
    texts: Annotated[list[str] | None, typer.Argument(metavar="TEXT...", help="Inputs to predict.")] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="COLUMN=TEXT", help="A column of one further input, e.g. instruction=Translate."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="FILE",
            help="JSON lines, or plain text: one input per line, or one in all for a language model; - is stdin.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum answer length of a language model, in tokens.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict with a run's merged model.

    Example: glora-search predict runs/reviews "A fine book" "A waste of paper", or
    glora-search predict runs/alpaca --set instruction=Translate --set "input=Good morning"
    """
    begin(as_json=as_json)
    if not texts and not columns and file is None:
        raise invalid("TEXT", [], "at least one text, as an argument, by --set, or in --file")
    from glora_search.run.folder import RunFolder
    from glora_search.run.predict import inputs_in, prediction_rows, row_of, writes
    from glora_search.run.predict import predict as use

    silence_libraries()
    folder = RunFolder(run)
    inputs: list[Any] = [*(texts or []), *([row_of(folder, columns)] if columns else [])]
    if file is not None:
        inputs += inputs_in(folder, _text(file), str(file))
    if not inputs:
        raise invalid("--file", str(file), "at least one text: it is empty")
    outputs = use(folder, inputs, max_new_tokens=max_new_tokens)
    if as_json:
        emit([{"input": given, "output": output} for given, output in zip(inputs, outputs, strict=True)])
        return
    pairs = zip(inputs, outputs, strict=True)
    found = [(_shown(given), row) for given, output in pairs for row in prediction_rows(output) or [{}]]
    if writes(folder):
        for text, row in found:
            result(f"> {text}\n{next(iter(row.values()))}\n")
        return
    names = list(dict.fromkeys(key for _, row in found for key in row))
    table("", ["input", *names], [[text, *(_value(row.get(key)) for key in names)] for text, row in found])


def _text(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise invalid("--file", str(file), f"a text file in UTF-8 ({reason})") from None


def _shown(given: Any) -> str:
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{float(value):.4f}" if isinstance(value, float) or hasattr(value, "item") else str(value)
