"""Metrics of generated text, and exact match."""

from __future__ import annotations

import abc
import re
import reprlib
from collections import Counter
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import GenerationConfig

from glora_search.errors import invalid
from glora_search.metrics.base import CONSTANT, Metric, Score, longest_prompt
from glora_search.tasks.constants import FREQUENT
from glora_search.tasks.language_model import LanguageModel


@torch.inference_mode()
def generate(task: LanguageModel, model: Any, rows: Dataset, max_new_tokens: int) -> list[str]:
    """What a model answers in each row, without sampling; all else is as its own generation config says, its ends too.

    What a chat template has every answer begin with is left out (`LanguageModel.lead`).

    Args:
        rows: as read; those that ask something, see `LanguageModel.asked`.
        max_new_tokens: an answer that has no end is cut here.
    """
    lead = task.lead(rows)
    before = task.tokenizer.decode(lead, skip_special_tokens=True).strip()
    max_new_tokens += len(lead)
    limit = longest_prompt(task, max_new_tokens)
    asked = [question.ids for question in task.questions(rows)]
    prompts = asked if limit is None else [ids[-limit:] for ids in asked]
    device, reads = next(model.parameters()).device, bool(getattr(task.config, "is_encoder_decoder", False))
    padding = task.tokenizer.pad_token_id
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=padding)
    texts = [""] * len(prompts)
    order, size = np.argsort([len(ids) for ids in prompts], kind="stable"), task.recipe.search.batch_size
    model.eval()
    for first in range(0, len(order), size):
        chosen = order[first : first + size].tolist()
        batch = task.tokenizer.pad(
            {"input_ids": [prompts[row] for row in chosen]},
            padding_side="right" if reads else "left",  # a decoder goes on where its prompt ends
            return_tensors="pt",
        )
        given = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
        found = model.generate(**given, generation_config=settings)
        new = found if reads else found[:, given["input_ids"].shape[1] :]
        for row, text in zip(chosen, task.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
            texts[row] = _without(text, before)
    return texts


def _without(text: str, before: str) -> str:
    begun = text.lstrip()
    return begun.removeprefix(before).lstrip() if before and begun.startswith(before) else text


class GeneratedMetric(Metric):
    """The mean of what each generated text is worth.

    Args:
        task: see `Metric`.
        max_new_tokens: the longest generated text, in tokens.
    """

    def __init__(self, task: LanguageModel, *, max_new_tokens: int = 32) -> None:
        super().__init__(task)
        self.max_new_tokens = max_new_tokens

    @abc.abstractmethod
    def worth(self, generated: str, expected: str) -> float:
        """What a text is worth.

        Args:
            generated: by the model, without special tokens.
            expected: the row's response.
        """

    def answer(self, text: str) -> str | None:
        """The part of a text that counts as its answer; texts with equal answers are worth the same."""
        return text.strip()

    def score(self, model: Any, rows: Dataset) -> Score:
        """See `Metric`."""
        generated = generate(self.task, model, rows, self.max_new_tokens)
        expected = [question.expected for question in self.task.questions(rows)]
        answers = set(map(self.answer, generated))
        note = ""
        if len(answers) == 1 and len(set(map(self.answer, expected))) > 1:
            only = answers.pop()
            what = "no answer" if only is None else f"the same answer, {reprlib.repr(only)},"
            note = f"gives {what} to all {len(rows)} questions"
        return Score(float(np.mean(list(map(self.worth, generated, expected)))), note)

    def check(self, rows: Dataset, split: str) -> list[str]:
        """See `Metric`; prompts have to leave room for an answer."""
        limit = longest_prompt(self.task, self.max_new_tokens + len(self.task.lead(rows)))
        if limit is None:
            return []
        if limit < 1:
            longest = limit + self.max_new_tokens
            raise invalid(f"{self.key}.max_new_tokens", self.max_new_tokens, f"less than {longest}, the longest input")
        cut = sum(len(question.ids) > limit for question in self.task.questions(rows))
        return [f"{self.name}: {cut} of {len(rows)} prompts of data.{split} lose their beginning"] if cut else []

    def references(self, rows: Dataset) -> dict[str, float]:
        """The best of the most frequent responses, for every row."""
        expected = [question.expected for question in self.task.questions(rows)]
        counts = Counter(answer for answer in map(self.answer, expected) if answer is not None)
        first = {answer: text for text in reversed(expected) if (answer := self.answer(text)) is not None}
        texts = [first[answer] for answer, _ in counts.most_common(FREQUENT)]
        worth = [float(np.mean([self.worth(text, one) for one in expected])) for text in texts]
        best = max if self.direction == "maximize" else min
        return {CONSTANT: best(worth)} if worth else {}


class ExactMatch(GeneratedMetric):
    """The share of texts with the right answer; see `glora_search.recipe.metrics.ExactMatch`."""

    name = "exact_match"

    def __init__(
        self, task: LanguageModel, *, pattern: str | None = None, ignore_case: bool = False, max_new_tokens: int = 32
    ) -> None:
        super().__init__(task, max_new_tokens=max_new_tokens)
        self.pattern = None if pattern is None else re.compile(pattern)
        self.ignore_case = ignore_case

    def answer(self, text: str) -> str | None:
        """What the pattern finds; None where that is nothing, or white space."""
        if self.pattern is not None:
            match = self.pattern.search(text)
            text = "" if match is None else match[min(1, self.pattern.groups)] or ""
        text = text.strip()
        return (text.casefold() if self.ignore_case else text) or None

    def worth(self, generated: str, expected: str) -> float:
        """Whether there is an answer, and it is the right one."""
        answer = self.answer(generated)
        return float(answer is not None and answer == self.answer(expected))

    def check(self, rows: Dataset, split: str) -> list[str]:
        """See `GeneratedMetric`; responses have to have answers that are not too long."""
        expected = [question.expected for question in self.task.questions(rows)]
        without = sum(self.answer(text) is None for text in expected)
        if without == len(expected):
            key, value = ("pattern", self.pattern.pattern) if self.pattern else ("type", "exact-match")
            allowed = f"a pattern that finds an answer in responses; in data.{split} it finds none"
            raise invalid(f"{self.key}.{key}", value, f"{allowed}: {reprlib.repr(expected[0])}")
        notes = super().check(rows, split)
        if without:
            notes.append(f"{self.name}: {without} of {len(rows)} responses of data.{split} have no answer to match")
        ids = self.task.token_ids(expected, special=False)
        written = self.task.tokenizer.batch_decode(ids, skip_special_tokens=True)
        lost = sum(self.answer(one) != self.answer(text) for one, text in zip(written, expected, strict=True))
        if lost:
            notes.append(
                f"{self.name}: {lost} of {len(rows)} responses of data.{split} cannot be written by the model's "
                "tokenizer, so no answer matches them"
            )
        lengths = list(map(len, ids))
        long = sum(length > self.max_new_tokens for length in lengths)
        if long:
            notes.append(
                f"{self.name}: {long} of {len(rows)} responses of data.{split} are longer than max_new_tokens, "
                f"{self.max_new_tokens} tokens; the longest has {max(lengths)}"
            )
        return notes
