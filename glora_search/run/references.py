"""What a result is compared with besides baselines: the base model, answers that look at no row, and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from glora_search.finals.finalists import TUNED
from glora_search.metrics.base import CHANCE, CONSTANT
from glora_search.ranking import rank_key
from glora_search.run.context import Context
from glora_search.run.measures import measures
from glora_search.run.scores import Scores
from glora_search.scoring import Batches, evaluate
from glora_search.tasks import Task

BASE = "base model"


def base_model(run: Context, batches: Batches, measured: Scores) -> list[dict[str, Any]]:
    """The base model, where it says something before it is trained: a head that is drawn at random does not.

    Args:
        batches: the test rows.
    """
    model = run.task.model()
    if run.task.draws:
        return []
    run.placed(model)
    validation, test = (evaluate(model, rows, run.task).metric for rows in (run.validation, batches))
    measured.score(model, BASE)
    return [{"name": BASE, "params": 0, "validation": validation, "test": test, **measured.of(BASE)}]


def constants(task: Task, test: Dataset, measured: Scores) -> list[dict[str, Any]]:
    """The best constant answer and chance, as far as they are known.

    Args:
        test: encoded.
    """
    known = {split: task.best_constant(rows) for split, rows in {"validation": task.validation, "test": test}.items()}
    scores = {split: found.metric for split, found in known.items() if found is not None}
    values = measured.panel.references()
    rows = [{"name": task.constant, **scores}] if scores else []
    if rows and task.constant == CONSTANT and CONSTANT in values:
        rows[0]["metrics"] = values.pop(CONSTANT)
    return [*rows, *({"name": name, "metrics": own} for name, own in values.items())]


def no_better(metrics: Mapping[str, Any]) -> list[str]:
    """What the final model is not better than on test: a note for the chosen metric, and one for the task's."""
    found, said = measures(metrics), list[str]()
    source = metrics["final"]["source"]
    won = [entry["name"] for entry in metrics["baselines"] if entry["name"].removesuffix(TUNED) == source]
    baselines = [
        {**entry, "name": f"baseline {entry['name']}"} for entry in metrics["baselines"] if entry["name"] not in won
    ]
    said += [f"the baseline won the finals: the final model is {name}" for name in won]
    for measure in dict.fromkeys([found[0], found[-1]]):
        ours = measure.of(metrics["final"], "test")
        key = rank_key(ours, direction=measure.direction)
        others = [
            f"{'' if entry['name'] == CHANCE else 'the '}{entry['name']} ({value:.4f})"
            for entry in [*metrics["references"], *baselines]
            if (value := measure.of(entry, "test")) is not None and rank_key(value, direction=measure.direction) <= key
        ]
        if ours is not None and others:
            said.append(f"by {measure.name} on test ({ours:.4f}), the final model is no better than {_listed(others)}")
    return said


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
