"""What every metric of answers is."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from datasets import Dataset

from glora_search.tasks.language_model import LanguageModel
from glora_search.tasks.models import longest_input

CONSTANT = "best constant answer"
CHANCE = "chance"


@dataclass(frozen=True)
class Score:
    """What a metric says of a model.

    Attributes:
        value: the metric.
        note: what the value alone does not tell.
    """

    value: float
    note: str = ""


class Metric(abc.ABC):
    """A metric of a language model's answers.

    A recipe names a subclass by its import path; see ``docs/tasks.md``. A metric of generated text is a
    `GeneratedMetric`, which needs less.

    Args:
        task: whose rows are scored; `LanguageModel.questions` has prompts and responses.

    Attributes:
        name: what tables call it; set from the recipe where that names it.
        direction: whether a higher or a lower value is better.
        own_rows: whether it has rows of its own, in place of those of the recipe's splits.
        key: where it stands in the recipe, for messages.
        max_rows: of each split, so many rows are scored; None is all.
    """

    name: str = ""
    direction: Literal["maximize", "minimize"] = "maximize"
    own_rows: ClassVar[bool] = False
    key: str = "task.metrics"
    max_rows: int | None = None

    def __init__(self, task: LanguageModel) -> None:
        self.task = task

    @abc.abstractmethod
    def score(self, model: Any, rows: Dataset) -> Score:
        """Score a model.

        Args:
            model: plain or with an adapter, on the device where it is to be used.
            rows: as read, with the columns of the recipe; those that ask something.
        """

    def check(self, rows: Dataset, split: str) -> list[str]:
        """Refuse rows that cannot be scored; called before the first stage.

        Returns:
            Notes on these rows.

        Raises:
            UserError: says why.
        """
        return []

    def references(self, rows: Dataset) -> dict[str, float]:
        """What those are worth that look at no row: `CONSTANT`, `CHANCE`, or what else there is."""
        return {}


def longest_prompt(task: LanguageModel, max_new_tokens: int) -> int | None:
    """How many tokens of a prompt a model can be given before its answer; None where there is no limit."""
    if getattr(task.config, "is_encoder_decoder", False):
        return None
    longest = longest_input(task.tokenizer, task.config)
    return None if longest is None else longest - max_new_tokens
