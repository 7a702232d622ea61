"""The pictures of docs/evidence.md, as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import pandas as pd

COLOURS = ("#2a6f97", "#d1495b", "#66a182", "#edae49", "#7b5ea7", "#555555", "#00798c", "#a0522d")
WIDTH = 640


def forest(pairs: pd.DataFrame, mean: tuple[float, float, float] | None) -> str:
    """A row for each data set: the differences of its seeds as dots, their mean as a bar; the mean of all below.

    Args:
        pairs: of `study_statistics.paired`.
        mean: of all, with its interval.
    """
    groups = sorted(pairs.groupby("data"), key=lambda group: float(group[1]["points"].mean()))
    values = [0.0, *pairs["points"], *(mean or ())]
    place = _scale(min(values), max(values), 150, WIDTH - 20)
    height = 30 + 24 * (len(groups) + 1) + 30
    parts = [_line(place(0), 20, place(0), height - 30, "#999")]
    for number, (name, own) in enumerate(groups):
        y = 40 + 24 * number
        parts.append(_text(140, y + 4, str(name), "end"))
        parts += [_dot(place(value), y, COLOURS[0], 3, 0.5) for value in own["points"]]
        at = place(float(own["points"].mean()))
        parts.append(_line(at, y - 7, at, y + 7, COLOURS[0], 3))
    y = 40 + 24 * len(groups)
    if mean is not None:
        parts.append(_text(140, y + 4, "mean, 95 %", "end"))
        parts += [_line(place(mean[1]), y, place(mean[2]), y, COLOURS[1], 3), _dot(place(mean[0]), y, COLOURS[1], 5)]
    for tick in _ticks(min(values), max(values)):
        parts.append(_text(place(tick), height - 12, f"{tick:+g}" if tick else "0", "middle"))
    parts.append(_text(WIDTH - 20, 14, "ours - the tuned LoRA, in points; a dot is a seed", "end"))
    return _svg(parts, height)


def lines(curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """Score (up) against budget (across, logarithmic), a line for each method."""
    points = [point for line in curves.values() for point in line]
    budgets, scores = [math.log(x) for x, _ in points], [y for _, y in points]
    across = _scale(min(budgets), max(budgets), 50, WIDTH - 225)
    up = _scale(min(scores), max(scores), 280, 30)
    parts = []
    for number, (name, line) in enumerate(curves.items()):
        colour, placed = COLOURS[number % len(COLOURS)], [(across(math.log(x)), up(y)) for x, y in sorted(line)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_dot(x, y, colour, 3.5) for x, y in placed]
        parts.append(_text(WIDTH - 205, 40 + 16 * number, name, "start", colour))
    for x in sorted({x for x, _ in points}):
        parts.append(_text(across(math.log(x)), 302, f"{x:,}", "middle"))
    parts += [_text(44, up(tick) + 4, f"{tick:g}", "end") for tick in _ticks(min(scores), max(scores))]
    parts.append(_text(50, 16, "mean test score against adapter parameters", "start"))
    return _svg(parts, 316)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (end - start) * (value - low) / (high - low or 1)


def _ticks(low: float, high: float) -> list[float]:
    step = next(step for step in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 8)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dot(x: float, y: float, colour: str, radius: float, opacity: float = 1) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="{opacity}"/>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, width: int = 1) -> str:
    places = f'x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"'
    return f'<line {places} stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text}</text>'


def _svg(parts: Sequence[str], height: int) -> str:
    size = f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, *parts, "</svg>"]) + "\n"
