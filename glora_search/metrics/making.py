"""The metrics that a recipe names."""

from __future__ import annotations

from typing import Any

from glora_search.errors import invalid
from glora_search.files.plugins import import_class, options_of
from glora_search.metrics.base import Metric
from glora_search.metrics.choices import MultipleChoice
from glora_search.metrics.generated import ExactMatch
from glora_search.metrics.harness import HarnessTask
from glora_search.recipe.metrics import BUILT_IN, LmEval, MetricSettings, OwnMetric
from glora_search.tasks.base import Task
from glora_search.tasks.language_model import LanguageModel

CLASSES: dict[str, Any] = {"exact-match": ExactMatch, "multiple-choice": MultipleChoice}


def make_metrics(task: Task) -> list[Metric]:
    """A recipe's metrics, in their order; those of lm-eval are one for each of its tasks.

    Raises:
        UserError: a class cannot be imported or has other options, the rows ask nothing, or two have one name.
    """
    found: list[Metric] = []
    for number, settings in enumerate(task.recipe.task.metrics):
        key = f"task.metrics.{number}"
        if not isinstance(task, LanguageModel) or not (task.answers or isinstance(settings, LmEval)):
            allowed = "a metric of rows that ask something: give data.response_column, or data.messages_column"
            raise invalid(f"{key}.type", settings.type, allowed)
        own = _made(task, settings, key)
        if settings.name is not None and len(own) > 1:
            raise invalid(f"{key}.name", settings.name, "null, where tasks have several names")
        for metric in own:
            metric.key, metric.max_rows = key, settings.max_rows
            metric.name = settings.name or metric.name or type(metric).__name__
            if metric.name in (task.metric, *(other.name for other in found)):
                raise invalid(f"{key}.name", metric.name, "a name that no other metric has")
            found.append(metric)
    return found


def _made(task: LanguageModel, settings: MetricSettings, key: str) -> list[Metric]:
    if isinstance(settings, LmEval):
        options = settings.model_dump(include={"num_fewshot", "include_path"})
        return [HarnessTask(task, harness_task=name, **options) for name in settings.tasks]
    if not isinstance(settings, OwnMetric):
        return [CLASSES[settings.type](task, **settings.model_dump(exclude={"type", "name", "max_rows"}))]
    cls = own_class(settings, key)
    try:
        return [cls(task, **settings.options)]
    except TypeError as error:
        allowed = f"{options_of(cls, ['task'])} ({error})"
        raise invalid(f"{key}.options", settings.options, allowed) from error


def own_class(settings: OwnMetric, key: str) -> type[Metric]:
    """The class of a metric of the user's own.

    Args:
        key: where the metric stands in the recipe, for the message.

    Raises:
        UserError: it cannot be imported.
    """
    allowed = f"one of {', '.join(map(repr, BUILT_IN))}, or the import path of a glora_search.metrics.Metric"
    return import_class(settings.type, Metric, key=f"{key}.type", allowed=allowed)  # type: ignore[type-abstract]
