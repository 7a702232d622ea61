"""Several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from glora_search.files.text import load_yaml
from glora_search.run.stages import STAGES
from glora_search.run.status import read_recipe, read_stage


def compare(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """What each run was asked and what came of it.

    Args:
        folders: run folders, finished or not.

    Returns:
        One mapping a run, and notes: what makes the figures of these runs no fair comparison.

    Raises:
        UserError: a folder is not a run folder.
    """
    recipes = {folder: read_recipe(folder) for folder in folders}
    rows = [_row(folder, recipe) for folder, recipe in recipes.items()]
    notes = [f"{row['run']} is not finished" for row in rows if row["test"] is None]
    data = {str(folder): _rows_of(recipe) for folder, recipe in recipes.items()}
    notes += _differences("data", data)
    notes += _differences("metric", {row["run"]: row["metric"] for row in rows if row["metric"] is not None})
    return rows, notes


def _row(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    search, metrics = recipe["search"], read_stage(folder, "test")
    row = {
        "run": str(folder),
        "model": recipe["task"].get("model"),
        "data": _short(recipe["data"]),
        "space": load_yaml(folder / "space.yaml").get("name"),
        "budget": search.get("max_params"),
        "sampling": recipe["supernet"].get("sampling"),
        "sampler": search.get("sampler"),
        "seed": recipe.get("seed"),
        "metric": None,
        "final": None,
        "params": None,
        "validation": None,
        "test": None,
        "minutes": None,
    }
    if metrics is not None:
        final = metrics["final"]
        row |= {"metric": metrics["metric"], "final": final["source"], "minutes": sum(metrics["seconds"].values()) / 60}
        return row | {key: final[key] for key in ("params", "validation", "test")}
    seconds = [done["seconds"] for stage in STAGES[:-1] if (done := read_stage(folder, stage)) is not None]
    trained = [done for stage in ("retrained", "best") if (done := read_stage(folder, stage)) is not None]
    if trained:
        sign = 1 if (read_stage(folder, "supernet") or {}).get("direction") == "minimize" else -1
        best = min(trained, key=lambda done: (sign * done["validation"], done["validation_loss"]))
        row |= {key: best[key] for key in ("params", "validation")}
    return row | {"minutes": sum(seconds) / 60 if seconds else None}


def _short(data: dict[str, Any]) -> str:
    """The data's name: of a file its last part."""
    name = data.get("name") or data.get("train") or data.get("source")
    return Path(str(name)).name


def _rows_of(recipe: dict[str, Any]) -> dict[str, Any]:
    """What decides which rows a run has seen; the seed does where it cuts a split off."""
    data = recipe["data"]
    cuts = any(data.get(split) is None for split in ("validation", "test"))
    return {**data, **({"seed": recipe.get("seed")} if cuts or data.get("max_train_rows") else {})}


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
