"""The tables of docs/evidence.md, as Markdown, from what was chosen on validation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from study_found import block_of, filled, mean_agreement, role_of, shares
from study_plan import METHODS, UNSIZED
from study_results import Results
from study_statistics import PAIR, difference, paired

from glora_search.finals.finalists import SCRATCH, TAUGHT

NAMES = {
    "head": "head only",
    "lora": "LoRA",
    "lora-averaged": "LoRA, weights averaged",
    "lora-qv": "LoRA on query and value",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "adalora": "AdaLoRA",
    "eva": "LoRA with EVA",
    "hira": "HiRA",
    "glora": "uniform GLoRA (peft)",
    "ia3": "(IA)3",
    "bitfit": "BitFit",
    "lora+vectors": "LoRA with vectors A and E",
    "full": "full fine-tuning",
    "taught": "LoRA, the supernet as teacher",
    "random": "race with random structures",
    "untaught": "ours, without the teacher",
    "paper": "the paper's method",
    "ours": "ours",
}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; nothing where it has no rows."""
    if not rows:
        return ""
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def coverage(results: Mapping[str, Results]) -> str:
    """A row for each part of the plan: what of it is there."""
    groups: dict[tuple[str, int, int, str], list[bool]] = {}
    for encoder, own in results.items():
        for cell in own.study.cells():
            if cell.encoder == encoder:
                groups.setdefault((encoder, cell.rows, cell.budget, cell.method), []).append(cell in own.done)
    rows = [
        [encoder, f"{rows:,}", f"{budget:,}" if budget else "", NAMES[method], f"{sum(there)} of {len(there)}"]
        for (encoder, rows, budget, method), there in groups.items()
    ]
    return table(["encoder", "train rows", "budget", "method", "cells"], rows)


def by_set(ours: pd.DataFrame, lora: pd.DataFrame, picked: pd.DataFrame) -> str:
    """A row for each data set: the mean test scores of three methods, and ours minus the tuned LoRA.

    Args:
        picked: the best baseline on validation, where there is another one than LoRA.
    """
    pairs, rows = paired(ours, lora), []
    for name, own in pairs.groupby("data"):
        scores = [_mean(frame, own, str(name)) for frame in (lora, picked, ours)]
        spread = f"{own['points'].min():+.1f} to {own['points'].max():+.1f}" if len(own) > 1 else ""
        rows.append(
            [
                str(name),
                str(len(own)),
                *scores,
                f"{own['points'].mean():+.2f}",
                spread,
                f"{own['loss'].mean() - 1:+.0%}",
            ]
        )
    header = ["data", "seeds", "LoRA, tuned", "best baseline", "ours", "ours - LoRA", "its seeds", "test loss"]
    return table(header, rows)


def _mean(frame: pd.DataFrame, pairs: pd.DataFrame, name: str) -> str:
    """Of the test scores of a data set, over the seeds of the pairs."""
    own = frame[(frame["data"] == name) & frame["seed"].isin(pairs["seed"])]
    if own.empty:
        return ""
    some = f" ({len(own)} of {len(pairs)} seeds)" if len(own) < len(pairs) else ""
    return f"{100 * own['test'].mean():.1f}{some}"


def by_method(chosen: pd.DataFrame, primary: int) -> str:
    """A row for each method and budget: its difference to LoRA of the same budget in the same pairs, and its cost.

    Args:
        chosen: of `study_statistics.tuned`, of one encoder and number of train rows.
        primary: the budget of the LoRA with which methods of one size are compared.
    """
    rows = []
    for (budget, method), own in sorted(chosen.groupby(["budget", "method"]), key=_order):
        reference = primary if method in UNSIZED else budget
        lora = chosen[(chosen["method"] == "lora") & (chosen["budget"] == reference)]
        pairs = paired(own, lora)
        found, what, over = difference(pairs), "", ""
        if found is not None:
            what, over = "" if method == "lora" else str(found), f"{found.sets} x {found.seeds}"
        lower = f"{pairs.groupby('data')['loss'].mean().mean() - 1:+.0%}" if what else ""
        rows.append(
            [
                f"{budget:,}" if budget else "",
                NAMES[method],
                f"{own['params'].mean():,.0f}",
                what,
                lower,
                over or f"{len(own)} runs",
                _number(own["trainings"].mean()),
            ]
        )
    header = ["budget", "method", "parameters", "points above LoRA", "test loss", "sets x seeds", "LoRA trainings"]
    return table(header, rows)


def _order(group: Any) -> tuple[int, int]:
    (budget, method), _ = group
    return int(budget), METHODS.index(method)


def _number(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else ""


def winners(ours: pd.DataFrame) -> str:
    """Who won the races, and how often."""
    counts = Counter(_kind(str(name)) for name in ours["winner"])
    return table(["winner", "runs"], [[name, str(count)] for name, count in counts.most_common()])


def _kind(winner: str) -> str:
    """A winner without its rank and its rate."""
    taught = TAUGHT if winner.endswith(TAUGHT) else ""
    name = winner.removesuffix(TAUGHT)
    if name.startswith("subnet"):
        return f"a searched subnet{SCRATCH if SCRATCH in name else ''}{taught}"
    return name.split(" x")[0].split(" r=")[0] + taught


def inside(races: Sequence[dict[str, Any]]) -> str:
    """The lowest validation losses of the races, by who was trained with and without the teacher.

    Args:
        races: lines of ``genomes.jsonl`` with finalists.
    """
    lowest = []
    for race in races:
        losses: dict[str, float] = {}
        for one in race["finalists"]:
            start = "from scratch" if SCRATCH in one["name"] else "with inherited weights"
            who = f"searched subnets {start}" if one["name"].startswith("subnet") else "uniform methods"
            kind = f"{who}, with{'' if one['name'].endswith(TAUGHT) else 'out'} a teacher"
            loss = math.inf if one["validation_loss"] is None else one["validation_loss"]
            losses[kind] = min(loss, losses.get(kind, math.inf))
        lowest.append(losses)
    alone, taught = "uniform methods, without a teacher", "uniform methods, with a teacher"
    rows = []
    for kind in sorted({kind for losses in lowest for kind in losses} - {alone}, reverse=True):
        own = [losses for losses in lowest if math.isfinite(losses.get(kind, math.inf)) and alone in losses]
        ratio = sum(losses[kind] / losses[alone] for losses in own) / len(own) if own else math.nan
        best = sum(losses[kind] == min(losses.values()) for losses in own)
        rows.append([kind, str(len(own)), f"{ratio - 1:+.1%}", _against(own, alone, taught), str(best)])
    header = ["who", "races", "lowest validation loss against that of uniform methods alone"]
    return table([*header, "in the same races, uniform methods with a teacher", "lowest of all"], rows)


def _against(races: Sequence[dict[str, float]], alone: str, who: str) -> str:
    """The mean lowest loss of some against that of others; nothing if a race lacks one of the two."""
    ratios = [losses[who] / losses[alone] for losses in races if who in losses]
    return f"{sum(ratios) / len(ratios) - 1:+.1%}" if ratios and len(ratios) == len(races) else ""


def found(genomes: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Where the paths of the searches' best subnets go, and how far these agree.

    Args:
        genomes: lines of ``genomes.jsonl``, of one encoder, number of rows, budget and method.
    """
    own = [(line["data"], line["best"]) for line in genomes if line["best"] is not None]
    if not own:
        return dict.fromkeys(("kinds", "blocks", "roles", "agreement"), "")
    layers = sorted({layer for _, paths in own for layer in paths})
    every = [paths for _, paths in own]
    kinds = [
        [path, *[", ".join(f"{kind} {count / sum(counts.values()):.0%}" for kind, count in counts.most_common())]]
        for path, counts in shares(every, layers).items()
    ]
    groups = {
        name: [[str(group), f"{share:.0%}"] for group, share in filled(every, layers, by).items()]
        for name, by in (("blocks", block_of), ("roles", role_of))
    }
    same, others = (mean_agreement(own, layers, same=same) for same in (True, False))
    said = [
        f"{text}, {value:+.3f}"
        for text, value in (("on one data set", same), ("on different ones", others))
        if math.isfinite(value)
    ]
    return {
        "kinds": table(["path", "kinds, of all layers"], kinds),
        "blocks": table(["block", "layers with a path"], groups["blocks"]),
        "roles": table(["layer", "with a path"], groups["roles"]),
        "agreement": "Cohen's kappa of two genomes over all paths is 1 where they are the same, and 0 for chance. "
        f"Its mean over {len(own)} searches is, {'; '.join(said)}."
        if said
        else "",
    }


def curves(chosen: pd.DataFrame) -> tuple[dict[str, list[tuple[int, float]]], int]:
    """Mean test scores over what LoRA and ours have at every budget that both have.

    Returns:
        Method -> its score at each budget, of methods with two or more; and over how many sets and seeds it is. Nothing
        where there is one: it says little.
    """
    frames = {method: chosen[chosen["method"] == method] for method in ("lora", "ours")}
    budgets = sorted(set(frames["lora"]["budget"]) & set(frames["ours"]["budget"]))
    keys = [
        set(frame.loc[frame["budget"] == budget, PAIR].itertuples(index=False, name=None))
        for frame in frames.values()
        for budget in budgets
    ]
    common = set.intersection(*keys) if len(budgets) > 1 else set()
    lines: dict[str, list[tuple[int, float]]] = {}
    for (method, budget), own in chosen.groupby(["method", "budget"]):
        there = own[[key in common for key in own[PAIR].itertuples(index=False, name=None)]]
        if len(common) > 1 and len(there) == len(common) and budget:
            lines.setdefault(NAMES[method], []).append((int(budget), 100 * float(there["test"].mean())))
    return {name: line for name, line in lines.items() if len(line) > 1}, len(common)
