"""All metrics of a recipe, on rows of several splits; and a few answers to look at."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from glora_search.errors import invalid
from glora_search.metrics.base import Metric, longest_prompt
from glora_search.metrics.generated import generate
from glora_search.metrics.making import make_metrics
from glora_search.tasks.base import Task
from glora_search.tasks.language_model import LanguageModel

SAMPLES = 5
SAMPLE_TOKENS = 64
LONGEST_SHOWN = 1000
"""Characters of a sample."""

Values = dict[str, dict[str, float]]
"""Metric -> split -> value."""


class Panel:
    """The metrics that a recipe names, and what they are scored on.

    Args:
        task: the recipe's task.
        splits: name -> rows as read.

    Attributes:
        metrics: in the recipe's order; empty where it names none.
    """

    def __init__(self, task: Task, splits: dict[str, Dataset]) -> None:
        self.metrics = make_metrics(task)
        self.rows: dict[str, dict[str, Dataset]] = {}
        for metric in self.metrics:
            self.rows[metric.name] = {split: _some(metric, task, rows) for split, rows in splits.items()}
            if metric.own_rows:
                self.rows[metric.name] = dict(list(self.rows[metric.name].items())[-1:])

    def check(self) -> list[str]:
        """Refuse what cannot be scored.

        Returns:
            Notes on the rows.

        Raises:
            UserError: says why.
        """
        notes = []
        for metric in self.metrics:
            for split, rows in self.rows[metric.name].items():
                if not len(rows):
                    raise invalid(
                        f"{metric.key}.type", metric.name, f"nothing where no row of data.{split} asks something"
                    )
                notes += metric.check(rows, split)
        return notes

    def score(self, model: Any) -> tuple[Values, list[str]]:
        """The metrics of a model, and notes on its answers, which begin with a verb."""
        values: Values = {}
        notes = []
        for metric in self.metrics:
            values[metric.name] = {}
            for split, rows in self.rows[metric.name].items():
                found = metric.score(model, rows)
                values[metric.name][split] = found.value
                if found.note:
                    notes.append(f"{found.note} of {split} ({metric.name})")
        return values, notes

    def references(self) -> dict[str, Values]:
        """What looks at no row -> metric -> split -> value."""
        found: dict[str, Values] = {}
        for metric in self.metrics:
            for split, rows in self.rows[metric.name].items():
                for name, value in metric.references(rows).items():
                    found.setdefault(name, {}).setdefault(metric.name, {})[split] = value
        return found

    def facts(self) -> list[dict[str, Any]]:
        """What tables have to know of each metric."""
        return [
            {
                "name": metric.name,
                "direction": metric.direction,
                "rows": {} if metric.own_rows else {split: len(rows) for split, rows in self.rows[metric.name].items()},
            }
            for metric in self.metrics
        ]


def _some(metric: Metric, task: Task, rows: Dataset) -> Dataset:
    """The rows that a metric is scored on."""
    if metric.own_rows or not isinstance(task, LanguageModel):
        return rows
    asked = task.asked(rows)
    if metric.max_rows is None or metric.max_rows >= len(asked):
        return asked
    drawn = np.random.default_rng(task.recipe.seed).permutation(len(asked))[: metric.max_rows]
    return asked.select(sorted(drawn.tolist()))


def sample_answers(task: Task, model: Any, rows: Dataset) -> list[dict[str, str]]:
    """A few rows: what a language model is asked, what is expected and what it writes; none of other tasks.

    Args:
        rows: as read.
    """
    if not isinstance(task, LanguageModel) or not getattr(model, "can_generate", lambda: False)():
        return []
    longest = max([SAMPLE_TOKENS, *(getattr(metric, "max_new_tokens", 0) for metric in task.recipe.task.metrics)])
    room = longest_prompt(task, 0)
    longest = longest if room is None else min(longest, max(1, room // 2))
    asked = task.asked(rows)
    asked = asked.select(range(min(SAMPLES, len(asked))))
    written = generate(task, model, asked, longest)
    return [
        {"prompt": _shown(question.prompt), "expected": _shown(question.expected), "generated": _shown(text)}
        for question, text in zip(task.questions(asked), written, strict=True)
    ]


def _shown(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]} ..."
