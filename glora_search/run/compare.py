"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora_search.files.text import load_yaml, read_json
from glora_search.run.folder import ORIGIN, RunFolder
from glora_search.run.measures import measures

PERPLEXITY = "perplexity"
TOKENS = ("model", "max_length", "chat", "prompt", "packing")
"""What decides which tokens a perplexity is of."""


def compare(runs: Sequence[RunFolder]) -> tuple[list[dict[str, Any]], list[str]]:
    """What each run was asked and what came of it.

    Args:
        runs: run folders, finished or not.

    Returns:
        One mapping a run, and notes: what makes the figures of these runs no fair comparison.
    """
    rows = [_row(run) for run in runs]
    notes = [f"{row['run']} is not finished" for row in rows if row["test"] is None]
    data = _differences("data", {str(run.path): _rows_of(run.recipe) for run in runs})
    notes += data or [note for run in runs[1:] for note in _other_contents(runs[0], run)]
    found = {row["run"]: row["metric"] for row in rows if row["metric"] is not None}
    differing = _differences("metric", found)
    notes += [f"{note}: their scores cannot be compared" for note in differing]
    tasks = {str(run.path): run.recipe["task"] for run in runs if str(run.path) in found}
    settings = {run: (task.get("metrics") or [{}])[0] for run, task in tasks.items()}
    notes += [] if differing else _differences("task.metrics.0", settings)
    if set(found.values()) == {PERPLEXITY}:
        told = {run: {key: task.get(key) for key in TOKENS} for run, task in tasks.items()}
        notes += [f"{note}: perplexities are of other tokens" for note in _differences("task", told)]
    return rows, notes


def _row(run: RunFolder) -> dict[str, Any]:
    recipe, metrics, seconds = run.recipe, run.done("test"), run.seconds()
    row = {
        "run": str(run.path),
        "model": recipe["task"].get("model"),
        "data": _short(recipe["data"]),
        "space": load_yaml(run.path / "space.yaml").get("name"),
        "budget": run.budget,
        "sampling": recipe["supernet"].get("sampling"),
        "sampler": recipe["search"].get("sampler"),
        "seed": recipe.get("seed"),
        "metric": None,
        "final": None,
        "params": None,
        "validation": None,
        "test": None,
        "minutes": sum(seconds.values()) / 60 if seconds else None,
    }
    if metrics is not None:
        final, chosen = metrics["final"], measures(metrics)[0]
        row |= {"metric": chosen.name, "final": final["source"], "params": final["params"]}
        return row | {split: chosen.of(final, split) for split in ("validation", "test")}
    found = run.final()
    shown = ("params", *(() if recipe["task"].get("metrics") else ("validation",)))  # the recipe's come with the test
    return row if found is None else row | {key: found[1][key] for key in shown}


def _short(data: dict[str, Any]) -> str:
    """The data's name: of a file its last part."""
    name = data.get("name") or data.get("folder") or data.get("train") or data.get("source")
    return Path(str(name)).name


def _rows_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides which rows a run has seen; the seed does where it cuts a split off."""
    data = recipe["data"]
    cuts = any(data.get(split) is None for split in ("validation", "test"))
    return {**data, **({"seed": recipe.get("seed")} if cuts or data.get("max_train_rows") else {})}


def _other_contents(first: RunFolder, other: RunFolder) -> list[str]:
    """What stands in the same place for both runs, and was another thing when each of them began.

    Rows are known by the columns that a task reads of them, so those of two tasks are not compared.
    """
    tasks = [run.recipe["task"] for run in (first, other)]

    def same(*keys: str) -> bool:
        return all(tasks[0].get(key) == tasks[1].get(key) for key in keys)

    origins = [read_json(run.path / ORIGIN) for run in (first, other) if (run.path / ORIGIN).is_file()]
    if len(origins) < 2:
        return []
    found = []
    for what, key, asked in (("data", "data", same("type", "prompt")), ("task.model", "model", same("model"))):
        before, after = (origin.get(key, {}) for origin in origins)
        names = [name for name in before if name in after and before[name]["digest"] != after[name]["digest"]]
        if names and asked:
            found.append(f"{what}: {', '.join(names)} had other contents in {first.path} than in {other.path}")
    return found


def _differences(what: str, values: dict[str, Any]) -> list[str]:
    """One note for each thing in which a run differs from the first one."""
    if not values:
        return []
    first, *others = values
    notes = []
    for other in others:
        before, after = values[first], values[other]
        if isinstance(before, dict):
            names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
            pairs = [(f"{what}: {name}", before.get(name), after.get(name)) for name in names]
        else:
            pairs = [(what, before, after)] if before != after else []
        notes += [f"{key} is {old!r} in {first} and {new!r} in {other}" for key, old, new in pairs]
    return notes
