"""Text classification: one label for each text, or for each pair of texts, scored by accuracy."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from glora_search.tasks.base import Labelled, TextTask
from glora_search.tasks.rows import Column, texts_of


class TextClassification(Labelled, TextTask):
    """Reads ``text_column`` and ``label_column``, and ``text_pair_column`` for pairs of texts."""

    task_type = "SEQ_CLS"
    one_label = True
    auto_class = AutoModelForSequenceClassification
    pipeline = "text-classification"

    def inputs(self) -> list[Column]:
        """``text_column``, and ``text_pair_column`` where the recipe gives it."""
        pairs = getattr(self.recipe.data, "text_pair_column", None) is not None
        return self.columns("text_column", *(["text_pair_column"] if pairs else []))

    def make_collator(self) -> Any:
        """Pads a batch to its longest row."""
        return DataCollatorWithPadding(self.tokenizer)

    def encode(self, rows: Dataset) -> Dataset:
        """Columns of the tokenizer (``input_ids``, ``attention_mask``, ...) and ``labels``."""
        texts = [texts_of(rows, column) for _, column in self.inputs()]
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        return Dataset.from_dict({**encoded, "labels": self.classes(rows)})
