"""The charts: one function each, from tables to a plotly figure.

Text, axes and grid have no colours here: the page's style sheet gives them those of the light or the dark theme.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from glora_search.finals.finalists import TAUGHT
from glora_search.report.data import RunData, by_peft, is_lower_better
from glora_search.vocabulary import PATHS, TIED

# Of Okabe and Ito's palette, which stays apart for colour-blind readers, what is seen on white and on black.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
GREY = "#8a8f98"
LOOKS = ((VERMILLION, "circle"), (GREEN, "square"), (PURPLE, "diamond"), (ORANGE, "x"), (SKY, "cross"))
DASHES = ("solid", "dash", "dot", "dashdot")
TOP_LAYERS = 20


def metric_against_parameters(data: RunData) -> go.Figure:
    """Every scored trial, the front, the baselines, the best and the final subnet, and the budget."""
    metrics, trials = data.metrics, data.trials
    metric = _text(metrics["metric"])
    figure = _figure("adapter parameters", f"validation {metric}")
    figure.update_xaxes(rangemode="tozero")
    if not trials.empty:
        figure.add_scatter(
            x=trials["user_attrs_params"],
            y=trials["value"],
            text=_names(trials),
            name="evaluated subnet",
            mode="markers",
            marker={"color": BLUE, "opacity": 0.6, "size": 7},
            hovertemplate=f"%{{text}}<br>%{{x:,}} parameters<br>{metric} %{{y:.4f}}<extra></extra>",
        )
        front = pareto_front(trials, lower=is_lower_better(metrics))
        figure.add_scatter(
            x=front["user_attrs_params"],
            y=front["value"],
            name="front",
            mode="lines",
            line={"color": PURPLE, "width": 2, "shape": "hv"},
            hoverinfo="skip",
        )
    models = [(f"{entry['name']}{by_peft(entry)}", entry, VERMILLION, "square") for entry in metrics["baselines"]]
    if "search" in metrics:
        models.append(("best subnet", metrics["search"]["best"], SKY, "diamond"))
    if "final" in metrics:
        models.append((f"final ({metrics['final']['source']})", metrics["final"], GREEN, "star"))
    for name, entry, colour, symbol in models:
        if entry["validation"] is None:  # it has diverged
            continue
        figure.add_scatter(
            x=[entry["params"]],
            y=[entry["validation"]],
            name=_text(name),
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 14, "line": {"width": 1, "color": "#1c1f24"}},
            hovertemplate=f"{_text(name)}<br>%{{x:,}} parameters<br>{metric} %{{y:.4f}}<extra></extra>",
        )
    if metrics["budget"] is not None:
        figure.add_vline(
            x=metrics["budget"], line={"dash": "dot", "color": GREY}, annotation={"text": "budget", "xanchor": "right"}
        )
    return figure


def pareto_front(trials: pd.DataFrame, *, lower: bool = False) -> pd.DataFrame:
    """The trials that no other beats in metric and parameters, the fewest parameters first."""
    ordered = trials.sort_values(["user_attrs_params", "value"], ascending=[True, lower], kind="stable")
    best = ordered["value"].cummin() if lower else ordered["value"].cummax()
    return ordered[best != best.shift()]


def best_so_far(data: RunData, column: str, label: str) -> go.Figure:
    """A figure of each trial, and of the best trial until then.

    Args:
        column: of ``data.trials``: ``value``, or ``user_attrs_loss``.
        label: its name.
    """
    trials = data.trials
    count = list(range(1, len(trials) + 1))
    # The best until then has the lowest rank until then.
    values = trials.set_index("rank")[column].reindex(trials["rank"].cummin())
    figure = _figure("evaluated subnets", f"validation {_text(label)}")
    figure.add_scatter(
        x=count,
        y=trials[column],
        text=_names(trials),
        name="trial",
        mode="markers",
        marker={"color": GREY, "size": 5, "opacity": 0.7},
        hovertemplate="%{text}<br>%{y:.4f}<extra></extra>",
    )
    figure.add_scatter(
        x=count,
        y=values,
        name="best so far",
        mode="lines",
        line={"color": BLUE, "width": 2.5, "shape": "hv"},
        hovertemplate="best after %{x}: %{y:.4f}<extra></extra>",
    )
    return figure


def path_importance(shares: pd.DataFrame) -> go.Figure:
    """The share of each path, from `importance.gene_importance`."""
    sums = shares.groupby("path")["share"].sum()
    order = [name for name in ("r", "E", "D", "D_E", "C", "B", "A", "A_B") if name in sums.index]
    labels = {"r": "rank", **{tie: " and ".join(paths) for tie, paths in TIED.items()}, **{p: p for p in PATHS}}
    return _bars([labels[name] for name in order], [sums[name] for name in order])


def layer_importance(shares: pd.DataFrame) -> go.Figure:
    """The share of the layers that account for most, from `importance.gene_importance`."""
    sums = shares.groupby("layer")["share"].sum().nlargest(TOP_LAYERS)[::-1]
    short = short_names(list(dict.fromkeys(shares["layer"])))
    return _bars([_text(short[name]) for name in sums.index], list(sums))


def _bars(names: list[str], shares: list[float]) -> go.Figure:
    figure = _figure("share", "", height=90 + 24 * len(names))
    figure.add_bar(
        x=shares,
        y=names,
        orientation="h",
        marker={"color": BLUE},
        hovertemplate="%{y}: %{x:.1%}<extra></extra>",
    )
    figure.update_layout(bargap=0.25)
    figure.update_xaxes(tickformat=".0%", nticks=6)
    figure.update_yaxes(type="category", dtick=1, showgrid=False, ticklabelstandoff=6)
    return figure


def probe_columns(history: pd.DataFrame) -> dict[str, str]:
    """Probe -> the column of its loss in a training's history."""
    found = (re.fullmatch("eval_(.+)_loss", name) for name in history.columns)
    return {match[1]: match[0] for match in found if match}


def supernet_curves(history: pd.DataFrame) -> go.Figure:
    """Training loss, logged and smoothed, and the loss of each probe subnet."""
    figure = _figure("step", "loss", height=460)
    logged = history.dropna(subset=["loss"])
    smooth = logged["loss"].ewm(span=max(2.0, len(logged) / 10)).mean()
    figure.add_scatter(
        x=logged["step"],
        y=logged["loss"],
        name="training, as logged",
        mode="lines",
        line={"color": GREY, "width": 1},
        opacity=0.6,
    )
    figure.add_scatter(
        x=logged["step"], y=smooth, name="training, smoothed", mode="lines", line={"color": BLUE, "width": 3}
    )
    for index, (probe, column) in enumerate(probe_columns(history).items()):
        colour, symbol = LOOKS[index % len(LOOKS)]
        seen = history.dropna(subset=[column])
        figure.add_scatter(
            x=seen["step"],
            y=seen[column],
            name=_text(probe),
            mode="lines+markers",
            line={"color": colour, "width": 1.5, "dash": DASHES[index // len(LOOKS) % len(DASHES)]},
            marker={"symbol": symbol, "size": 7},
        )
    figure.update_traces(hovertemplate="step %{x}: %{y:.4f}<extra>%{fullData.name}</extra>")
    return figure


def race_curves(finalists: Sequence[Mapping[str, Any]], curves: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """The validation loss of every finalist, the winner's on top; those with a teacher are dashed."""
    figure = _figure("step", "validation loss", height=460)
    colours: dict[str, Any] = {}
    for row in finalists:
        own = row["name"].removesuffix(TAUGHT)
        colours.setdefault(own, LOOKS[len(colours) % len(LOOKS)])
    for place, row in reversed(list(enumerate(finalists))):
        losses = {int(step): loss for step, loss in curves.get(row["name"], {}).items()}
        colour, symbol = colours[row["name"].removesuffix(TAUGHT)]
        dash = "dash" if row["name"].endswith(TAUGHT) else "solid"
        figure.add_scatter(
            x=list(losses),
            y=list(losses.values()),
            name=_text(row["name"]),
            mode="lines+markers",
            line={"color": colour, "width": 1.5 if place else 4, "dash": dash},
            marker={"symbol": symbol, "size": 6},
            legendrank=place,
        )
    figure.update_traces(hovertemplate="step %{x}: %{y:.4f}<extra>%{fullData.name}</extra>")
    return figure


def _figure(x: str, y: str, height: int = 400) -> go.Figure:
    axis = {"automargin": True, "gridcolor": GREY, "zeroline": False}
    layout = {
        "template": "none",
        "height": height,
        "margin": {"l": 8, "r": 8, "t": 24, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        "dragmode": False,
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
    }
    return go.Figure(layout=layout)


def _names(trials: pd.DataFrame) -> list[str]:
    origins = trials["user_attrs_origin"]
    return [f"trial {number}: {_text(origin)}" for number, origin in zip(trials["number"], origins, strict=True)]


def _text(value: Any) -> str:
    """Text as plotly shows it: it takes some tags for formatting."""
    return html.escape(str(value), quote=False)


def short_names(names: list[str]) -> dict[str, str]:
    """Layer -> its name without the beginning that all layers share."""
    parts = [name.split(".") for name in names]
    common = 0
    while len(names) > 1 and all(len(p) > common + 1 and p[common] == parts[0][common] for p in parts):
        common += 1
    return {name: ".".join(part[common:]) for name, part in zip(names, parts, strict=True)}
