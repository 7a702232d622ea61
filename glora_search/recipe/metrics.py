"""The metrics of a language model's answers: ``task.metrics`` of a recipe."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from glora_search.errors import invalid
from glora_search.recipe.data import Section


class AnyMetric(Section):
    """What all metrics have.

    Attributes:
        name: its name in tables; None is its type's name.
        max_rows: score at most this many rows of each split, drawn with the recipe's seed; None scores all.
    """

    name: str | None = Field(default=None, min_length=1)
    max_rows: int | None = Field(default=None, ge=1)


class ExactMatch(AnyMetric):
    """The share of rows whose generated text equals the response, except for white space at either end.

    Attributes:
        pattern: a regular expression that finds the answer in both texts: its first group, or the whole match if it
            has no group. None compares whole texts. A text without a match has no answer, and its row counts as wrong.
        ignore_case: ignore letter case.
        max_new_tokens: maximum length of the generated text, in tokens.
    """

    type: Literal["exact-match"]
    pattern: str | None = None
    ignore_case: bool = False
    max_new_tokens: int = Field(default=32, ge=1)

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise invalid("pattern", value, f"a regular expression ({error})") from None
        return value


class MultipleChoice(AnyMetric):
    """The share of rows whose response is, to the model, the likeliest of several choices after the prompt.

    The likelihood includes the token that ends an answer, since it is learned; lm-evaluation-harness leaves it out.

    Attributes:
        choices: the choices of every row, one of which is the row's response.
        choices_column: column with the choices of each row: a list, or text with the separator between them.
        separator: the text between two choices of such a column.
        per_character: compare likelihoods per character, so that short choices have no advantage.
    """

    type: Literal["multiple-choice"]
    choices: list[str | int | float] | None = None
    choices_column: str | None = None
    separator: str = Field(default="|", min_length=1)
    per_character: bool = False

    @field_validator("choices", mode="before")
    @classmethod
    def _check_text(cls, value: Any) -> Any:
        if isinstance(value, list) and any(choice is None or isinstance(choice, bool) for choice in value):
            allowed = "texts; YAML reads yes, no and null as values of their own: put them in quotes"
            raise invalid("choices", value, allowed)
        return value

    @field_validator("choices")
    @classmethod
    def _check_choices(cls, value: list[str | int | float] | None) -> list[str] | None:
        if value is None:
            return None
        texts = [str(choice).strip() for choice in value]
        if len(texts) < 2 or "" in texts or len(set(texts)) < len(texts):
            raise invalid("choices", value, "a list of at least 2 choices that differ, none of them empty")
        return texts

    @model_validator(mode="after")
    def _check_where(self) -> Self:
        if (self.choices is None) == (self.choices_column is None):
            raise invalid("choices", self.choices, "either choices or choices_column, not both")
        return self


class LmEval(AnyMetric):
    """Tasks of EleutherAI's lm-evaluation-harness, with their own rows; needs the extra ``lm-eval``.

    Attributes:
        tasks: names of tasks in the harness, such as ``arc_easy``; each is a metric of its own.
        num_fewshot: examples in the prompt; None is the task's default.
        include_path: a folder with tasks of your own, as the harness's ``--include_path``.
    """

    type: Literal["lm-eval"]
    tasks: list[str] = Field(min_length=1)
    include_path: str | None = None
    num_fewshot: int | None = Field(default=None, ge=0)


class OwnMetric(AnyMetric):
    """A metric of your own.

    Attributes:
        type: the import path of a `glora_search.metrics.Metric`.
        options: keyword arguments of the class.
    """

    type: str
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        if "." not in value:
            raise invalid("type", value, f"one of {', '.join(map(repr, BUILT_IN))}, or the import path of a Metric")
        return value


BUILT_IN = ("exact-match", "multiple-choice", "lm-eval")


def _tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in BUILT_IN else OwnMetric.__name__


MetricSettings = Annotated[
    Annotated[ExactMatch, Tag("exact-match")]
    | Annotated[MultipleChoice, Tag("multiple-choice")]
    | Annotated[LmEval, Tag("lm-eval")]
    | Annotated[OwnMetric, Tag(OwnMetric.__name__)],
    Discriminator(_tag),
]
