"""One module a task: its data, its model and its metric."""

from __future__ import annotations

import importlib

from glora_search.files.plugins import import_class
from glora_search.recipe.schema import TASKS, Recipe
from glora_search.tasks.base import Task

MODULES = {
    "text-classification": "text_classification.TextClassification",
    "text-regression": "text_regression.TextRegression",
    "multi-label": "multi_label.MultiLabel",
    "token-classification": "token_classification.TokenClassification",
    "causal-lm": "causal_lm.CausalLM",
    "seq2seq-lm": "seq2seq_lm.Seq2SeqLM",
    "image-classification": "image_classification.ImageClassification",
}


def task_class(name: str) -> type[Task]:
    """The class of a task, by its name or its import path.

    Raises:
        UserError: it cannot be imported, or is no `Task`.
    """
    if name in MODULES:
        module, _, cls = MODULES[name].rpartition(".")
        found: type[Task] = getattr(importlib.import_module(f"glora_search.tasks.{module}"), cls)
        return found
    allowed = f"one of {', '.join(map(repr, TASKS))}, or the import path of a glora_search.tasks.Task"
    return import_class(name, Task, key="task.type", allowed=allowed)  # type: ignore[type-abstract]


def make_task(recipe: Recipe) -> Task:
    """A recipe's task, its train and validation rows read.

    Raises:
        UserError: the model or the data cannot be had as the recipe says.
    """
    return task_class(recipe.task.type)(recipe)


__all__ = ["MODULES", "Task", "make_task", "task_class"]
