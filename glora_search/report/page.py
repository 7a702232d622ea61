"""One self-contained page: the result, the trials, and what was chosen in every layer."""

from __future__ import annotations

import html
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from glora_search.files import read_json, write_text
from glora_search.paths import PATHS, LayerPaths

# Okabe and Ito's palette, which stays apart for colour-blind readers.
KIND_COLOURS = {"none": "#e5e5e5", "constant": "#f0e442", "vector": "#56b4e9", "lora": "#d55e00"}
CHART = {"responsive": True, "displayModeBar": False}
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#999999"


def result_rows(metrics: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The final table: model, parameters, validation, test."""
    search, final, merged = metrics["search"]["best"], metrics["final"], metrics["merged"]
    entries = [(f"baseline: {entry['name']} (peft)", entry) for entry in metrics["baselines"]]
    entries += [("best subnet, inherited weights", search), (f"final subnet ({final['source']})", final)]
    rows = [
        (label, f"{entry['params']:,}", f"{entry['validation']:.4f}", f"{entry['test']:.4f}")
        for label, entry in entries
    ]
    return [
        *rows,
        ("final, merged into the base model", "0 more", f"{merged['validation']:.4f}", f"{merged['test']:.4f}"),
    ]


def write_report(run: Any) -> None:
    """Write ``report.html`` from what the run folder holds.

    Args:
        run: a `pipeline.Run` whose stages are done.
    """
    metrics = run.result("test")
    trials = pd.read_csv(run.folder / "search" / "trials.csv")
    trials = trials[trials["state"] == "COMPLETE"]
    layers = run.space.layer_paths(run.result("search")["best"]["genome"])
    score = "loss" if run.recipe.search.score == "loss" else metrics["metric"]
    goes_by = f"The search goes by the validation {score}."
    figures = [
        (_scatter(metrics, trials), "Every subnet that the search evaluated with its inherited weights, against its "
         "adapter parameters. Diamonds are models after a training of their own."),
        (_progress(metrics, trials), f"Validation {metrics['metric']} of each trial, and the best so far. {goes_by}"),
        (_heat_map(layers), "The kind that the best subnet has in every layer and path; the number is the rank."),
    ]  # fmt: skip
    charts = "".join(
        f"<figure>{figure.to_html(full_html=False, include_plotlyjs=False, config=CHART)}"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for figure, caption in figures
    )
    environment = read_json(run.folder / "environment.json")
    page = TEMPLATE.format(
        name=html.escape(metrics["name"]),
        script=get_plotlyjs(),
        table=_table(metrics),
        charts=charts,
        recipe=html.escape((run.folder / "recipe.yaml").read_text(encoding="utf-8")),
        environment=html.escape(yaml.safe_dump(environment, sort_keys=False)),
    )
    write_text(run.folder / "report.html", page)


def _table(metrics: dict[str, Any]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("model", "adapter parameters", "validation", "test"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in result_rows(metrics)
    )
    budget = "none" if metrics["budget"] is None else f"{metrics['budget']:,} parameters"
    rows_used = ", ".join(f"{count:,} {split}" for split, count in metrics["rows"].items())
    caption = f"Metric: {metrics['metric']}. Budget: {budget}. Rows: {rows_used}; the test rows were read at the end."
    return f"<table><tr>{head}</tr>{rows}</table><p>{html.escape(caption)}</p>"


def _layout(figure: go.Figure, x: str, y: str, height: int = 420) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        height=height,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
    )
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    return figure


def _scatter(metrics: dict[str, Any], trials: pd.DataFrame) -> go.Figure:
    figure = go.Figure()

    def points(name: str, x: Any, y: Any, text: Any, marker: dict[str, Any]) -> None:
        figure.add_scatter(x=list(x), y=list(y), text=list(text), name=name, mode="markers", marker=marker)

    points(
        "evaluated subnets",
        trials["user_attrs_params"],
        trials["value"],
        trials["user_attrs_origin"],
        {"color": BLUE, "opacity": 0.5, "size": 7},
    )
    for entry in metrics["baselines"]:
        name = f"{entry['name']} (peft)"
        points(name, [entry["params"]], [entry["validation"]], [name], _diamond(ORANGE))
    final = metrics["final"]
    label = f"final ({final['source']})"
    points(label, [final["params"]], [final["validation"]], [label], _diamond(GREEN))
    if metrics["budget"] is not None:
        figure.add_vline(x=metrics["budget"], line={"dash": "dot", "color": GREY}, annotation_text="budget")
    return _layout(figure, "adapter parameters", f"validation {metrics['metric']}")


def _diamond(colour: str) -> dict[str, Any]:
    return {"color": colour, "symbol": "diamond", "size": 13, "line": {"width": 1, "color": "#333"}}


def _progress(metrics: dict[str, Any], trials: pd.DataFrame) -> go.Figure:
    figure = go.Figure()
    count = list(range(1, len(trials) + 1))
    figure.add_scatter(x=count, y=trials["value"], name="trial", mode="markers", marker={"color": GREY, "size": 5})
    figure.add_scatter(x=count, y=trials["value"].cummax(), name="best so far", line={"color": BLUE, "shape": "hv"})
    return _layout(figure, "trial", f"validation {metrics['metric']}")


def _heat_map(layers: dict[str, LayerPaths]) -> go.Figure:
    kinds = list(KIND_COLOURS)
    names = list(layers)
    values = [[kinds.index(layers[name].kinds[path]) for path in PATHS] for name in names]
    text = [[str(layers[name].r) if layers[name].kinds[path] == "lora" else "" for path in PATHS] for name in names]
    steps = len(kinds)
    scale = [[(index + edge) / steps, colour] for index, colour in enumerate(KIND_COLOURS.values()) for edge in (0, 1)]
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=list(PATHS),
            y=[_short(name, names) for name in names],
            text=text,
            texttemplate="%{text}",
            zmin=-0.5,
            zmax=steps - 0.5,
            colorscale=scale,
            colorbar={"tickvals": list(range(steps)), "ticktext": kinds, "title": "kind"},
            xgap=2,
            ygap=2,
        )
    )
    figure.update_yaxes(autorange="reversed", dtick=1)
    return _layout(figure, "path", "", height=120 + 18 * len(names))


def _short(name: str, names: list[str]) -> str:
    """The name without the beginning that all layers share."""
    common = 0
    parts = [other.split(".") for other in names]
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return ".".join(name.split(".")[common:])


TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name} - glora-search</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }}
body {{ color: #222; background: #fff; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
figure {{ margin: 2rem 0; }} figcaption, p {{ color: #555; font-size: .9rem; }}
pre {{ overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: .8rem; }}
</style><script>{script}</script></head>
<body><h1>{name}</h1>{table}{charts}
<details><summary>Recipe</summary><pre>{recipe}</pre></details>
<details><summary>Environment</summary><pre>{environment}</pre></details>
</body></html>
"""
