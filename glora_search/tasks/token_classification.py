"""Token classification: a tag for each word, scored by F1 of entities, or by accuracy where tags are no entities."""

from __future__ import annotations

import reprlib
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from seqeval.metrics.sequence_labeling import get_entities
from torch import Tensor
from transformers import AutoModelForTokenClassification, AutoTokenizer, DataCollatorForTokenClassification

from glora_search.errors import invalid
from glora_search.recipe.schema import Recipe
from glora_search.scoring import IGNORED
from glora_search.tasks.base import Labelled
from glora_search.tasks.constants import one_hot
from glora_search.tasks.rows import Column, rows_cut
from glora_search.tasks.texts import TextTask

SPACES = "\u2581\u0120 "
"""How tokenizers write a space: SentencePiece's, that of byte-level ones, and itself."""


class TokenClassification(Labelled, TextTask):
    """Reads lists of words in ``text_column``, and a list of as many tags in ``label_column``.

    Only a word's first token is labelled. A word has the tokens that it has in a text, after a space. Where the tags
    are of the form ``B-X``, ``I-X`` and ``O``, the metric is ``f1`` of the entities that are found whole, over all
    kinds, by seqeval's rules, which are CoNLL's; else it is ``accuracy``, over words.
    """

    task_type = "TOKEN_CLS"
    target = "tags"
    auto_class = AutoModelForTokenClassification
    pipeline = "token-classification"
    pipeline_options: ClassVar[dict[str, Any]] = {"aggregation_strategy": "first"}

    def inputs(self) -> list[Column]:
        """``text_column``."""
        return self.columns("text_column")

    def __init__(self, recipe: Recipe) -> None:
        self._cut = self._lost = 0
        super().__init__(recipe)
        labels = self.data.labels
        self.entities = "O" in labels and all(label == "O" or label[:2] in ("B-", "I-") for label in labels)
        self.metric = "f1" if self.entities else "accuracy"

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        self._cut = self._lost = 0
        encoded = super()._encoded(rows, key)
        counts = [
            (len(rows) - len(encoded), "are left out: no word has a token and a tag"),
            (self._lost, "have words without a token, whose tags are neither learned nor scored"),
            (self._cut, f"are cut at task.max_length, {self.max_length} tokens: words after it are not scored"),
        ]
        self._counts[key] = (len(rows), counts)
        return encoded

    def load_processor(self) -> Any:
        """The tokenizer, told that words are split already where it reads them then as in a text (RoBERTa's).

        For others (GPT-2's relatives, in part), `encode` puts the space before a word.
        """
        tokenizer = super().load_processor()
        if not tokenizer.is_fast:
            raise invalid("task.model", self.recipe.task.model, "a model with a fast tokenizer, which knows the words")
        found = [tokenizer]
        if getattr(tokenizer, "add_prefix_space", None) is False:
            found.insert(0, self.load(AutoTokenizer, add_prefix_space=True, pad_token=tokenizer.pad_token))
        ways = [*((one, False) for one in found), *((one, True) for one in reversed(found))]
        self.tokenizer, self.spaced = next((way for way in ways if _reads_words(*way)), ways[0])
        return self.tokenizer

    def make_collator(self) -> Any:
        """Pads a batch and its labels to the longest row."""
        return DataCollatorForTokenClassification(self.batch_tokenizer())

    def encode(self, rows: Dataset) -> Dataset:
        """Columns of the tokenizer and ``labels``, one a token; rows without a word that has a token and a tag are left
        out."""
        words = [self._list(value, "text_column") for value in rows[self.column("text_column")]]
        tags = [self._list(value, "label_column") for value in rows[self.column("label_column")]]
        for row_words, row_tags in zip(words, tags, strict=True):
            if len(row_words) != len(row_tags):
                found = f"{len(row_tags)} tags for the {len(row_words)} words {reprlib.repr(row_words)}"
                raise invalid("data.label_column", found, "a tag for each word")
        index: dict[str | None, int] = {None: IGNORED}
        index.update((label, number) for number, label in enumerate(self.data.labels))
        kept = [number for number, row in enumerate(words) if row]
        if not kept:
            return Dataset.from_dict({"input_ids": [], "labels": []})
        texts = [[str(word) for word in words[number]] for number in kept]
        texts = [_spaced(row) for row in texts] if self.spaced else texts
        encoded = self.tokenizer(texts, is_split_into_words=True, truncation=True, max_length=self.max_length)
        self._cut = rows_cut(encoded)
        labels: list[list[int]] = []
        for number, row in enumerate(kept):
            places = encoded.word_ids(number)
            blank = [not token.strip(SPACES) for token in encoded.tokens(number)]
            first = _first_tokens(encoded, number, texts[number], places, blank)
            labels.append([index[tags[row][p]] if own else IGNORED for p, own in zip(places, first, strict=True)])
            tagged = {p for p, own in zip(places, first, strict=True) if own}
            whole = max(tagged, default=-1) if encoded.encodings[number].overflowing else len(words[row]) - 1
            self._lost += any(tag is not None and p not in tagged for p, tag in enumerate(tags[row][: whole + 1]))
        made = Dataset.from_dict({**encoded, "labels": labels})
        return made.select([number for number, row in enumerate(labels) if set(row) != {IGNORED}])

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 3]`` entities that are right, found, and there; or ``[rows, 2]`` words that are right, and all."""
        found, counted = logits.argmax(-1), labels != IGNORED
        if not self.entities:
            return torch.stack([((found == labels) & counted).sum(1), counted.sum(1)], dim=1)
        rows = []
        for guesses, truth, words in zip(found.cpu(), labels.cpu(), counted.cpu(), strict=True):
            own, real = self._entities(guesses[words]), self._entities(truth[words])
            rows.append([len(own & real), len(own), len(real)])
        return torch.tensor(rows, device=logits.device)

    def score(self, sums: np.ndarray) -> float:
        """F1 of entities, or accuracy of words."""
        if not self.entities:
            return super().score(sums)
        right, found, real = sums
        return float(2 * right / (found + real)) if found + real else 0.0

    def constants(self, rows: Dataset) -> list[list[float]]:
        """``O``, which finds no entity; without entities, the most frequent tags."""
        if self.entities:
            return one_hot(Counter([self.data.labels.index("O")]), len(self.data.labels))
        return one_hot(Counter(tag for row in rows["labels"] for tag in row if tag != IGNORED), len(self.data.labels))

    def _entities(self, tags: Tensor) -> set[tuple[str, int, int]]:
        """The entities of a row: kind, first word and last word."""
        return set(get_entities([self.data.labels[tag] for tag in tags.tolist()]))

    def _list(self, value: Any, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise invalid(f"data.{key}", self.column(key), f"a column of lists, not of {value!r}")
        return value


def _spaced(words: list[str]) -> list[str]:
    """The words of a text with the spaces between them."""
    return [*words[:1], *(f" {word}" for word in words[1:])]


def _reads_words(tokenizer: Any, spaced: bool) -> bool:
    """Whether a tokenizer makes of words what it makes of the text; some make tokens of their own of numbers."""
    words = ["goal", "2020", "goal"]
    given = tokenizer(_spaced(words) if spaced else words, is_split_into_words=True)["input_ids"]
    return list(given) == list(tokenizer(" ".join(words))["input_ids"])


def _first_tokens(
    encoded: Any, number: int, words: list[str], places: list[int | None], blank: list[bool]
) -> list[bool]:
    """Which tokens of a row are the first of their word; one of the space before it is none.

    Args:
        places: of each token, its word's.
        blank: which tokens are spaces; one that a tokenizer has put before a word has the place of its first letter.
    """
    found, seen = [], set[int]()
    for position, place in enumerate(places):
        if place is None or place in seen:
            found.append(False)
            continue
        span = encoded.token_to_chars(number, position)
        text = "" if span is None else words[place][span.start : span.end]
        space = blank[position] and places[position + 1 : position + 2] == [place]
        found.append((bool(text.strip()) and not space) or not words[place].strip())
        if found[-1]:
            seen.add(place)
    return found
