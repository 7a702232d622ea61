"""What fidelity.py's csv files say: rank correlations, regret and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from csv_rows import read_rows
from scipy.stats import rankdata, spearmanr

from glora_search.supernet.layer import SHARING
from glora_search.supernet.sampling import STRATEGIES

RESAMPLES = 2000
SAME_SIZE = 1.5
"""Up to this ratio of their parameter counts, two subnets are of one size."""
ORDER = [(sharing, strategy) for sharing in SHARING for strategy in STRATEGIES]
SUPERNET = ("dataset", "strategy", "options", "sharing", "seed", "epochs", "learning_rate", "lr_factors")


def alone_scores(rows: Sequence[dict[str, str]], dataset: str) -> dict[str, dict[str, float]]:
    """Subnet -> seed -> accuracy, of the settings with the most trainings on this data set."""
    names = ("epochs", "batch", "learning_rate", "lr_factors")
    settings = [tuple(row[name] for name in names) for row in rows if row["dataset"] == dataset]
    if not settings:
        return {}
    chosen = max(set(settings), key=lambda own: (settings.count(own), own))
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["dataset"] == dataset and tuple(row[name] for name in names) == chosen:
            scores.setdefault(row["subnet"], {})[row["seed"]] = float(row["accuracy"])
    return scores


def tau_b(first: np.ndarray, second: np.ndarray) -> float:
    """Kendall's tau-b of values ``[..., n]`` along the last axis; nan where one of them is constant."""
    one, two = (np.sign(values[..., :, None] - values[..., None, :]) for values in (first, second))
    with np.errstate(invalid="ignore"):
        return (one * two).sum((-2, -1)) / np.sqrt((one**2).sum((-2, -1)) * (two**2).sum((-2, -1)))


def interval(first: np.ndarray, second: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % bootstrap interval of Kendall's tau, over the subnets."""
    drawn = np.random.default_rng(seed).integers(len(first), size=(RESAMPLES, len(first)))
    low, high = np.nanpercentile(tau_b(first[drawn], second[drawn]), [2.5, 97.5])
    return float(low), float(high)


def tau_of_size(truth: np.ndarray, scores: np.ndarray, params: np.ndarray) -> float:
    """Kendall's tau over the pairs of about one size, `SAME_SIZE`: what the parameter count does not tell."""
    sizes = np.log(params)
    pairs = np.triu(np.abs(sizes[:, None] - sizes) <= np.log(SAME_SIZE), 1)
    pairs &= truth[:, None] != truth
    agree = np.sign(truth[:, None] - truth) * np.sign(scores[:, None] - scores)
    return float(agree[pairs].mean()) if pairs.any() else float("nan")


def compare(truth: np.ndarray, scores: np.ndarray, losses: np.ndarray, params: np.ndarray) -> dict[str, Any]:
    """How well scores rank subnets.

    Args:
        truth: accuracy of each subnet trained alone.
        scores: the accuracy that it inherits.
        losses: the loss with it; the lower one wins between equal scores, as in a search.
        params: the parameter count of each; ``tau_with_params`` is that of the mean of both ranks.
    """
    top = truth >= np.median(truth)
    low, high = interval(truth, scores)
    chosen = np.lexsort((losses, -scores))[0]
    return {
        "subnets": len(truth),
        "tau": round(float(tau_b(truth, scores)), 3),
        "tau_low": round(low, 3),
        "tau_high": round(high, 3),
        "spearman": round(float(spearmanr(truth, scores).statistic), 3),
        "tau_by_loss": round(float(tau_b(truth, -losses)), 3),
        "tau_with_params": round(float(tau_b(truth, rankdata(scores) + rankdata(params))), 3),
        "tau_of_size": round(tau_of_size(truth, scores, params), 3),
        "tau_of_size_by_loss": round(tau_of_size(truth, -losses, params), 3),
        "tau_top_half": round(float(tau_b(truth[top], scores[top])), 3),
        "regret": round(float(truth.max() - truth[chosen]), 4),
    }


def compare_without_losses(
    dataset: str, strategy: str, truth: np.ndarray, scores: np.ndarray, params: np.ndarray
) -> dict[str, Any]:
    """A row of the summary for scores that have no loss beside them."""
    facts = compare(truth, scores, np.zeros(len(truth)), params)
    return {"dataset": dataset, "strategy": strategy, **facts, "tau_by_loss": "", "tau_of_size_by_loss": ""}


def write_report(results: Path) -> None:
    """Write ``summary.csv`` and ``fidelity.svg`` beside the csv files, and print the table."""
    alone, inherited = read_rows(results / "standalone.csv"), read_rows(results / "supernets.csv")
    summary: list[dict[str, Any]] = []
    panels: list[tuple[str, np.ndarray, np.ndarray]] = []
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in inherited:
        groups.setdefault(tuple(row[name] for name in SUPERNET), []).append(row)
    for dataset in dict.fromkeys(row["dataset"] for row in alone):
        truths = alone_scores(alone, dataset)
        mean = {subnet: float(np.mean(list(seeds.values()))) for subnet, seeds in truths.items()}
        sizes = {row["subnet"]: float(row["params"]) for row in alone}
        summary += ceiling(dataset, truths, sizes)
        truth, params = (np.array([table[subnet] for subnet in mean]) for table in (mean, sizes))
        summary.append(compare_without_losses(dataset, "parameter count alone", truth, params, params))
        for key, rows in sorted(groups.items(), key=lambda group: ORDER.index((group[0][3], group[0][1]))):
            rows = [row for row in rows if row["subnet"] in mean]
            if key[0] != dataset or len(rows) < 5:
                continue
            truth = np.array([mean[row["subnet"]] for row in rows])
            scores, losses = (np.array([float(row[name]) for row in rows]) for name in ("accuracy", "loss"))
            gaps = [mean[row["subnet"]] - float(row["accuracy"]) for row in rows if is_anchor(row["subnet"])]
            facts = compare(truth, scores, losses, np.array([sizes[row["subnet"]] for row in rows]))
            drawn = [number for number, row in enumerate(rows) if not is_anchor(row["subnet"])]
            facts["tau_drawn"] = round(float(tau_b(truth[drawn], scores[drawn])), 3)
            facts |= {"anchor_gap_mean": round(float(np.mean(gaps)), 4), "anchor_gap_max": round(float(max(gaps)), 4)}
            summary.append({**dict(zip(SUPERNET, key, strict=True)), **facts, "seconds": rows[0]["seconds"]})
            if (key[2], key[4]) == ("{}", "0"):
                panels.append((f"{dataset}: {key[1]}, {key[3]}, tau {facts['tau']:.2f}", truth, scores))
    if not summary:
        print("nothing to report yet")
        return
    columns = list(max(summary, key=len))
    with (results / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(summary)
    (results / "fidelity.svg").write_text(scatter(panels), encoding="utf-8")
    shown = ("dataset", "strategy", "options", "sharing", "subnets", "tau", "tau_low", "tau_high", "spearman")
    shown += (
        "tau_with_params",
        "tau_drawn",
        "tau_of_size",
        "tau_top_half",
        "regret",
        "anchor_gap_mean",
        "anchor_gap_max",
    )
    print("| " + " | ".join(shown) + " |\n|" + " --- |" * len(shown))
    for row in summary:
        print("| " + " | ".join(str(row.get(name, "")) for name in shown) + " |")
    print_means([row for row in summary if row.get("sharing")])


def print_means(summary: Sequence[dict[str, Any]]) -> None:
    """Print what a choice of sampling and sharing gives on the mean of the data sets that have it."""
    shown = (
        "tau",
        "spearman",
        "tau_with_params",
        "tau_drawn",
        "tau_of_size",
        "tau_top_half",
        "tau_by_loss",
        "tau_of_size_by_loss",
        "regret",
    )
    shown += ("anchor_gap_mean", "anchor_gap_max")
    print("\n| sampling | options | sharing | data sets | " + " | ".join(shown) + " |\n|" + " --- |" * (len(shown) + 4))
    kinds = dict.fromkeys((row["sharing"], row["strategy"], row["options"]) for row in summary)
    for sharing, strategy, options in sorted(kinds, key=lambda kind: (ORDER.index(kind[:2]), kind[2])):
        kind = (sharing, strategy, options)
        own = [row for row in summary if (row["sharing"], row["strategy"], row["options"]) == kind]
        means = [f"{np.mean([row[name] for row in own]):.3f}" for name in shown]
        print("| " + " | ".join([strategy, options, sharing, str(len(own)), *means]) + " |")


def is_anchor(subnet: str) -> bool:
    """Whether a measured subnet is a uniform method."""
    return not subnet.startswith(("mixed", "structured"))


def ceiling(dataset: str, truths: dict[str, dict[str, float]], sizes: dict[str, float]) -> list[dict[str, Any]]:
    """How well one seed's stand-alone scores rank another's: what no supernet can be asked to exceed."""
    both = {subnet: seeds for subnet, seeds in truths.items() if {"0", "1"} <= seeds.keys()}
    if len(both) < 5:
        return []
    first, second = (np.array([seeds[seed] for seeds in both.values()]) for seed in ("0", "1"))
    params = np.array([sizes[subnet] for subnet in both])
    return [compare_without_losses(dataset, "alone, seed 0 against 1", first, second, params)]


def scatter(
    panels: Sequence[tuple[str, np.ndarray, np.ndarray]], columns: int = len(STRATEGIES), size: int = 260
) -> str:
    """One panel a supernet: accuracy alone (across) against accuracy inherited (up), as SVG."""
    margin, rows = 40, -(-len(panels) // columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{columns * size + 40}" height="{max(1, rows) * size}" '
        'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for number, (title, truth, scores) in enumerate(panels):
        left, top = number % columns * size + margin, number // columns * size + margin // 2
        side = size - margin - 20
        low, high = min(truth.min(), scores.min()), max(truth.max(), scores.max())

        def place(value: float, low: float = low, high: float = high, side: int = side) -> float:
            return side * (value - low) / (high - low or 1)

        parts.append(f'<g transform="translate({left},{top})"><text x="0" y="-5">{title}</text>')
        parts.append(f'<rect width="{side}" height="{side}" fill="none" stroke="#999"/>')
        parts.append(f'<line x1="0" y1="{side}" x2="{side}" y2="0" stroke="#ccc"/>')
        for label, at in ((f"{low:.2f}", 0), (f"{high:.2f}", side)):
            parts.append(f'<text x="{at - (20 if at else 0)}" y="{side + 13}">{label}</text>')
            parts.append(f'<text x="-28" y="{side - at + (10 if at else 0)}">{label}</text>')
        for x, y in zip(truth, scores, strict=True):
            parts.append(f'<circle cx="{place(x):.1f}" cy="{side - place(y):.1f}" r="3.5" fill="#2a6f97"/>')
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"]) + "\n"
