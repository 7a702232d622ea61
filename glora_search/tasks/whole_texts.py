"""What the tasks share that say something of a whole text, or of a pair of texts."""

from __future__ import annotations

import abc
import reprlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from glora_search.errors import invalid
from glora_search.recipe.schema import Recipe
from glora_search.tasks.rows import Column, rows_cut, texts_of
from glora_search.tasks.texts import TextTask


class WholeTexts(TextTask):
    """Reads ``text_column`` and ``label_column``, and ``text_pair_column`` for pairs of texts."""

    task_type = "SEQ_CLS"
    auto_class = AutoModelForSequenceClassification
    pipeline = "text-classification"

    def __init__(self, recipe: Recipe) -> None:
        self._blank = self._cut = 0
        super().__init__(recipe)

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        self._blank = self._cut = 0  # where a subclass encodes on its own
        encoded = super()._encoded(rows, key)
        counts = [
            (self._blank, "have no text, and are learned and scored as empty ones"),
            (self._cut, f"are cut at task.max_length, {self.max_length} tokens"),
        ]
        self._counts[key] = (len(rows), counts)
        return encoded

    @abc.abstractmethod
    def answers(self, rows: Dataset) -> list[Any]:
        """What the model has to say of each row, as its loss takes it."""

    def inputs(self) -> list[Column]:
        """``text_column``, and ``text_pair_column`` where the recipe gives it."""
        pairs = getattr(self.recipe.data, "text_pair_column", None) is not None
        return self.columns("text_column", *(["text_pair_column"] if pairs else []))

    def targets(self) -> list[Column]:
        """``label_column``."""
        return self.columns("label_column")

    def make_collator(self) -> Any:
        """Pads a batch to its longest row."""
        return DataCollatorWithPadding(self.batch_tokenizer())

    def encode(self, rows: Dataset) -> Dataset:
        """Columns of the tokenizer (``input_ids``, ``attention_mask``, ...) and ``labels``."""
        texts = [texts_of(rows, column) for column in self.inputs()]
        self._blank = sum(not any(map(str.strip, row)) for row in zip(*texts, strict=True))
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.max_length)
        self._check_ends(encoded["input_ids"], texts)
        self._cut = rows_cut(encoded)
        return Dataset.from_dict({**never_empty(encoded, self.tokenizer), "labels": self.answers(rows)})

    def _check_ends(self, ids: list[list[int]], texts: list[list[str]]) -> None:
        """Refuse a text that holds the token which ends it: an encoder-decoder (BART, T5) finds by the last of these
        what a row is, and takes no batch of rows with different numbers of them."""
        end = self.tokenizer.eos_token_id
        if end is None or not getattr(self.config, "is_encoder_decoder", False):
            return
        counts = [row.count(end) for row in ids]
        usual = Counter(counts).most_common(1)[0][0] if counts else 0
        odd = next((number for number, count in enumerate(counts) if count != usual), None)
        if odd is not None:
            text = reprlib.repr(" ".join(row[odd] for row in texts))
            allowed = f"texts without {self.tokenizer.eos_token}, by which this model finds where a text ends"
            raise invalid("data.text_column", text, allowed)


def never_empty(encoded: Mapping[str, list[list[int]]], tokenizer: Any) -> dict[str, list[list[int]]]:
    """The columns of encoded texts; one without a token, as some tokenizers leave an empty text, is what begins a text.

    The padding is the last choice: a decoder finds a row's last token by it.
    """
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    alone = {"input_ids": next((token for token in tokens if token is not None), 0), "attention_mask": 1}
    return {name: [row or [alone.get(name, 0)] for row in rows] for name, rows in encoded.items()}
