"""What both kinds of language models share: prompts, and perplexity."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq

from glora_search.recipe.prompts import columns_of, template_for
from glora_search.recipe.schema import Recipe
from glora_search.scoring import IGNORED
from glora_search.tasks.base import TextTask
from glora_search.tasks.rows import Column, texts_of


@dataclass(frozen=True)
class Fit:
    """How many rows of a split fit into ``max_length``.

    Attributes:
        rows: all of them.
        cut: those that lost their end.
        left_out: those without a token to learn in what fits.
    """

    rows: int
    cut: int
    left_out: int = 0


class LanguageModel(TextTask):
    """Scored by perplexity: e to the mean loss of a token, where lower is better.

    Attributes:
        fit: how the rows fit that `encode` was given last.
    """

    metric = "perplexity"
    direction = "minimize"

    prompted = True
    fit: Fit

    def __init__(self, recipe: Recipe) -> None:
        self._fits: dict[str, Fit] = {}
        super().__init__(recipe)

    def row_notes(self, share: float = 0.0) -> list[str]:
        """See `Task`."""
        length = f"task.max_length, {self.max_length} tokens"
        return [
            f"{count} of {fit.rows} rows of {key} {what} {length}"
            for key, fit in self._fits.items()
            for count, what in ((fit.cut, "are cut at"), (fit.left_out, "are left out: nothing to learn within"))
            if count > share * fit.rows
        ]

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        encoded = super()._encoded(rows, key)
        self._fits[key] = self.fit
        return encoded

    def inputs(self) -> list[Column]:
        """The columns of the prompt's templates, or ``text_column`` where the recipe has none."""
        return [("task.prompt", name) for name in columns_of(self.recipe.task.prompts)] or self.columns("text_column")

    def targets(self) -> list[Column]:
        """``response_column``."""
        return self.columns("response_column") if self.responds else []

    @property
    def responds(self) -> bool:
        """Whether the data has responses."""
        return getattr(self.recipe.data, "response_column", None) is not None

    def responses(self, rows: Dataset) -> list[str]:
        """The response of each row."""
        return texts_of(rows, self.columns("response_column")[0])

    def prompts(self, rows: Dataset) -> list[str]:
        """The prompt of each row: the first template whose columns all have text, else the last."""
        templates = self.recipe.task.prompts
        columns = [column for _, column in self.inputs()]
        texts = [texts_of(rows, column) for column in self.inputs()]
        if not templates:
            return texts[0]
        filled = []
        for values in zip(*texts, strict=True):
            row = dict(zip(columns, values, strict=True))
            filled.append(template_for(templates, row).format(**row))
        return filled

    def make_collator(self) -> Any:
        """Pads a batch and its labels to the longest row, at the end."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.padding_side = "right"  # what is saved with the model stays as it is
        return DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 2]``: the sum of the losses of the row's tokens, and their number."""
        sums = []
        for row, targets in zip(logits, labels, strict=True):  # one by one: in float32 a batch can be gigabytes
            loss = F.cross_entropy(row.float(), targets, ignore_index=IGNORED, reduction="sum")
            sums.append(torch.stack([loss, (targets != IGNORED).sum().float()]))
        return torch.stack(sums)

    def score(self, sums: np.ndarray) -> float:
        """Perplexity."""
        return float(np.exp(sums[0] / sums[1]))

    def token_ids(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Texts as tokens, uncut, with or without those that begin and end a text."""
        encoded = self.tokenizer(texts, add_special_tokens=special, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids
