"""Multiple choice by likelihood."""

from __future__ import annotations

import math
import reprlib
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from glora_search.errors import invalid
from glora_search.metrics.base import CHANCE, CONSTANT, Metric, Score, longest_prompt
from glora_search.scoring import IGNORED, Batches, outputs
from glora_search.tasks.language_model import LanguageModel


class MultipleChoice(Metric):
    """The share of rows whose response is the likeliest choice; see `glora_search.recipe.metrics.MultipleChoice`."""

    name = "multiple_choice"

    def __init__(
        self,
        task: LanguageModel,
        *,
        choices: list[str] | None = None,
        choices_column: str | None = None,
        separator: str = "|",
        per_character: bool = False,
    ) -> None:
        super().__init__(task)
        self.choices, self.column, self.separator = choices, choices_column, separator
        self.per_character = per_character

    def score(self, model: Any, rows: Dataset) -> Score:
        """See `Metric`."""
        choices, right = self._choices(rows), self._right(rows)
        owners = [row for row, own in enumerate(choices) for _ in own]
        texts = [question.expected for question in self.task.questions(rows)]
        answers = [
            text.replace(text.strip(), choice)  # with the white space of the response, which tokens depend on
            for text, own in zip(texts, choices, strict=True)
            for choice in own
        ]
        losses = self._losses(model, rows.select(owners), answers)
        if np.isnan(losses).any():
            return Score(math.nan)
        if self.per_character:
            losses = losses / [max(1, len(answer)) for answer in answers]
        starts = np.cumsum([0, *map(len, choices)])
        chosen = [int(losses[start:end].argmin()) for start, end in pairwise(starts)]
        note = ""
        if len(set(chosen)) == 1 and len(set(right)) > 1:
            what = reprlib.repr(choices[0][chosen[0]]) if self.choices else f"number {chosen[0] + 1}"
            note = f"chooses the same answer, {what}, for all {len(rows)} questions"
        return Score(float(np.mean(np.equal(chosen, right))), note)

    def check(self, rows: Dataset, split: str) -> list[str]:
        """See `Metric`; each row has choices, and its response is one of them."""
        self._right(rows, split)
        if (limit := longest_prompt(self.task, 0)) is None:
            return []
        longest = self.task.completed(rows, [max(own, key=len) for own in self._choices(rows)])
        cut = sum(len(ids) > limit for ids, _ in longest)
        return [f"{self.name}: {cut} of {len(rows)} rows of data.{split} lose their beginning"] if cut else []

    def references(self, rows: Dataset) -> dict[str, float]:
        """The choice at one place, for every row; and one at random."""
        right = Counter(self._right(rows))
        return {
            CONSTANT: right.most_common(1)[0][1] / len(rows),
            CHANCE: float(np.mean([1 / len(own) for own in self._choices(rows)])),
        }

    def _choices(self, rows: Dataset) -> list[list[str]]:
        if self.column is None:
            return [self.choices or []] * len(rows)
        values = list(rows[self.column])
        odd = next((value for value in values if value is not None and not isinstance(value, (list, str))), None)
        if odd is not None:
            allowed = f"a column of lists, or of text with {self.separator!r} between choices, not of"
            raise invalid(f"{self.key}.choices_column", self.column, f"{allowed} {reprlib.repr(odd)}")
        lists = (value.split(self.separator) if isinstance(value, str) else value or [] for value in values)
        return [["" if choice is None else str(choice).strip() for choice in own] for own in lists]

    def _right(self, rows: Dataset, split: str = "") -> list[int]:
        """The place of each row's response among its choices."""
        key, value = (".choices", self.choices) if self.column is None else (".choices_column", self.column)
        found = []
        for question, own in zip(self.task.questions(rows), self._choices(rows), strict=True):
            asked = f", after the prompt {reprlib.repr(question.prompt)}"
            if len(set(own)) < 2 or len(set(own)) < len(own) or "" in own:
                allowed = f"at least 2 choices in each row that differ, none of them empty; one of data.{split} has"
                raise invalid(f"{self.key}{key}", value, f"{allowed} {reprlib.repr(own)}{asked}")
            answer = question.expected.strip()
            if answer not in own:
                allowed = f"choices one of which is the row's response; one of data.{split} has the response"
                shown = f"{reprlib.repr(answer)}, and the choices {reprlib.repr(own)}"
                raise invalid(f"{self.key}{key}", value, f"{allowed} {shown}{asked}")
            found.append(own.index(answer))
        return found

    @torch.inference_mode()
    def _losses(self, model: Any, rows: Dataset, answers: list[str]) -> np.ndarray:
        """What each answer costs after its row's prompt, the token that ends it included: ``[rows]``."""
        encoded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
        reads = bool(getattr(self.task.config, "is_encoder_decoder", False))
        limit = longest_prompt(self.task, 0)
        for ids, labels in self.task.completed(rows, answers):
            if limit is not None:
                ids, labels = ids[-limit:], labels[-limit:]
            encoded["input_ids"].append(ids)
            encoded["attention_mask"].append([1] * len(ids))
            encoded["labels"].append(labels if reads else [IGNORED, *labels[1:]])
        batches = Batches(Dataset.from_dict(encoded), self.task.collator, self.task.recipe.search.batch_size)
        losses = [
            self.task.losses(output.logits, batch["labels"].to(output.logits.device))[:, 0].cpu()
            for batch, output in outputs(model, batches)
        ]
        found = np.empty(len(answers))
        found[batches.order] = torch.cat(losses).double().numpy()
        return found
