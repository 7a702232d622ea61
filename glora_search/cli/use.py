"""Commands for what was found: ``report``, ``compare`` and ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glora_search.cli import complete
from glora_search.cli.app import USE, Json, RunPath, app, silence_libraries
from glora_search.cli.output import begin, emit, result, table
from glora_search.errors import invalid


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
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="A text file with one input per line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict with a run's merged model.

    Example: glora-search predict runs/reviews "A fine book" "A waste of paper"
    """
    begin(as_json=as_json)
    inputs = [*(texts or []), *([] if file is None else _lines(file))]
    if not inputs:
        raise invalid("TEXT", inputs, "at least one text, as an argument or a line of --file")
    from glora_search.run.folder import RunFolder
    from glora_search.run.predict import predict as use
    from glora_search.run.predict import prediction_rows

    silence_libraries()
    outputs = use(RunFolder(run), inputs)
    if as_json:
        emit([{"input": text, "output": output} for text, output in zip(inputs, outputs, strict=True)])
        return
    found = [(text, row) for text, output in zip(inputs, outputs, strict=True) for row in prediction_rows(output)]
    columns = list(dict.fromkeys(key for _, row in found for key in row))
    table("", ["input", *columns], [[text, *(_value(row.get(key)) for key in columns)] for text, row in found])


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise invalid("--file", str(file), f"a text file in UTF-8 ({reason})") from None
    return [line for line in text.splitlines() if line.strip()]


def _value(value: Any) -> str:
    if value is None:
        return ""
    return f"{float(value):.4f}" if isinstance(value, float) or hasattr(value, "item") else str(value)
