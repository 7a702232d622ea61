"""What both kinds of language models share: prompts, questions with their answers, and perplexity."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from glora_search.errors import invalid
from glora_search.recipe.prompts import columns_of, template_for
from glora_search.recipe.schema import Recipe
from glora_search.scoring import IGNORED, Evaluation, summed
from glora_search.tasks.rows import Column, counted_notes, texts_of, with_column
from glora_search.tasks.texts import TextTask

ENDS_LOOKED_FOR = 1000
"""The train rows of which one has to show where an answer ends."""


@dataclass(frozen=True)
class Fit:
    """How many rows of a split fit into ``max_length``.

    Attributes:
        rows: all of them.
        cut: those that lost their end.
        empty: those whose response has no text.
        left_out: those without a token to learn in what fits.
    """

    rows: int
    cut: int
    left_out: int = 0
    empty: int = 0


@dataclass(frozen=True)
class Question:
    """What a model is asked in a row, and what it should write.

    Attributes:
        prompt: as text.
        ids: the prompt's tokens, uncut.
        expected: the row's own answer.
    """

    prompt: str
    ids: list[int]
    expected: str


class LanguageModel(TextTask):
    """Scored by perplexity: e to the mean loss of a token, where lower is better.

    A subclass with a metric of its own that comes from logits overrides `tally` and `score` together: this class's
    `score` is e to a mean, whatever is tallied. Logits are ``[rows, tokens, vocabulary]``; `aligned` puts them beside
    the labels that they are for, since those of a causal model at one token are for the next. A metric of generated
    text is a `glora_search.metrics.Metric`.

    Attributes:
        fit: how the rows fit that `encode` was given last.
    """

    metric = "perplexity"
    direction = "minimize"
    constant = "best answer that ignores the prompt"

    prompted = True
    writes = True
    fit: Fit

    def __init__(self, recipe: Recipe) -> None:
        self._fits: dict[str, Fit] = {}
        super().__init__(recipe)

    def row_notes(self, share: float = 0.0) -> list[str]:
        """See `Task`."""
        length = f"task.max_length, {self.max_length} tokens"
        notes = []
        for key, fit in self._fits.items():
            counts = (
                (fit.cut, f"are cut at {length}"),
                (fit.left_out, f"are left out: nothing to learn within {length}"),
                (fit.empty, "have an empty response, which the model learns"),
            )
            notes += counted_notes(key, fit.rows, counts, share)
        if self.answers and (why := self._endless()) is not None:
            notes.append(f"the model does not learn where an answer ends, since {why}: it writes until max_new_tokens")
        return notes

    def _endless(self) -> str | None:
        """Why no row teaches where an answer ends; None where one does."""
        ends = self.ends(self.data.train)
        if not ends:
            return "its tokenizer has neither eos_token nor sep_token"
        some = self.train_rows.select(range(min(ENDS_LOOKED_FOR, len(self.train_rows))))
        if any(not {*ends}.isdisjoint(labels) for labels in some["labels"]):
            return None
        names = " or ".join(self.tokenizer.convert_ids_to_tokens(ends))
        return f"no row has {names} in what is learned, because of the chat template or task.max_length"

    def load_tokenizer(self) -> Any:
        """See `TextTask`; where no token is called a text's end, the separator is, as BERT's tokenizers end texts."""
        tokenizer = super().load_tokenizer()
        if tokenizer.eos_token is None:
            tokenizer.eos_token = tokenizer.sep_token
        return tokenizer

    def padding(self) -> str | None:
        """See `TextTask`; padding is neither looked at nor learned, so that any token will do."""
        return super().padding() or self.tokenizer.bos_token or self.tokenizer.unk_token

    def _encoded(self, rows: Dataset, key: str) -> Dataset:
        encoded = super()._encoded(rows, key)
        written = not self.chats or self.recipe.task.chat  # else responses are lists of messages
        silent = sum(not text.strip() for text in self.responses(rows)) if self.responds and written else 0
        self._fits[key] = dataclasses.replace(self.fit, empty=silent)
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
        return DataCollatorForSeq2Seq(self.batch_tokenizer(), label_pad_token_id=IGNORED)

    def aligned(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, tokens, vocabulary]`` and the labels ``[rows, tokens]`` that they are for."""
        return logits, labels

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 2]``: the sum of the losses of the row's tokens, and their number."""
        sums = []
        for row, targets in zip(*self.aligned(logits, labels), strict=True):  # in float32 a batch can be gigabytes
            loss = F.cross_entropy(row.float(), targets, ignore_index=IGNORED, reduction="sum")
            sums.append(torch.stack([loss, (targets != IGNORED).sum().float()]))
        return torch.stack(sums)

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `losses`."""
        return self.losses(logits, labels)

    def score(self, sums: np.ndarray) -> float:
        """Perplexity."""
        return float(np.exp(sums[0] / sums[1]))

    def model(self, seed: int | None = None) -> PreTrainedModel:
        """See `Task.model`; what the model generates ends where the answers end that it learns, and a loss is that of
        tokens alone, without that of a router, which is frozen."""
        model = super().model(seed)
        for config in (model.config, model.config.get_text_config()):
            if getattr(config, "output_router_logits", False):
                config.output_router_logits = False
        known = [end for end in np.atleast_1d(model.generation_config.eos_token_id).tolist() if end is not None]
        if new := [end for end in self.ends(self.data.train) if end not in known]:
            set_generation(model, eos_token_id=[*known, *new])
        return model

    def token_ids(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Texts as tokens, uncut, with or without those that begin and end a text."""
        encoded = self.tokenizer(texts, add_special_tokens=special, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def check_metric(self, scored: Evaluation) -> None:
        """Refuse a `tally` that this class's `score` makes no perplexity of, or one that reads other tokens' logits."""
        own, expected = type(self), math.exp(min(scored.loss, 700.0))
        if own.score is LanguageModel.score and not math.isclose(scored.metric, expected, rel_tol=0.05):
            allowed = (
                f"a task whose score fits its tally: this score is e to a mean of what is tallied, here "
                f"{scored.metric:.4g}, and e to the loss is {expected:.4g}; override both, see docs/tasks.md"
            )
            raise invalid("task.type", self.recipe.task.type, allowed)
        if own.tally is not LanguageModel.tally:
            self._check_alignment()

    def _check_alignment(self) -> None:
        """Refuse a metric that likes right logits less than those that are right for another token."""
        labels = self.collator([self.validation[row] for row in range(min(4, len(self.validation)))])["labels"]
        worth = []
        for aligned in (True, False):
            logits = torch.zeros(*labels.shape, int(labels.max()) + 1)
            places, targets = self.aligned(logits, labels) if aligned else (logits, labels)
            places.scatter_(-1, targets.clamp(min=0)[..., None], 30.0)
            worth.append(self.score(summed(self, self.tally(logits, labels).double().numpy())))
        if (worth[0] < worth[1]) == (self.direction == "maximize") and worth[0] != worth[1]:
            allowed = (
                f"a task whose tally pairs logits and labels by LanguageModel.aligned: with the pairs, the metric of "
                f"right answers is {worth[0]:.4g}, and {worth[1]:.4g} without; see docs/tasks.md"
            )
            raise invalid("task.type", self.recipe.task.type, allowed)

    def best_constant(self, rows: Dataset) -> Evaluation | None:
        """What a model is worth that knows how frequent each answer is in train, and does not look at the prompt; None
        where there are answers that train has not."""
        if type(self).score is not LanguageModel.score:
            return None
        known = Counter(map(_answer, self.train_rows["labels"]))
        answers = [_answer(labels) for labels in rows["labels"]]
        if not all(answer in known for answer in answers):
            return None
        loss = sum(math.log(known.total() / known[answer]) for answer in answers)
        loss /= sum(map(len, answers))
        return Evaluation(math.exp(loss), loss)

    # -- answers -------------------------------------------------------------------------------------------------------

    @property
    def answers(self) -> bool:
        """Whether rows ask something; plain texts do not."""
        return self.responds

    def asked(self, rows: Dataset) -> Dataset:
        """Those rows as read that ask something."""
        return rows

    @abc.abstractmethod
    def questions(self, rows: Dataset) -> list[Question]:
        """What is asked in rows that `asked` has returned; of plain texts, how they go on."""

    @abc.abstractmethod
    def completed(self, rows: Dataset, answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """``input_ids`` and ``labels``, uncut, of rows from `asked` with other answers, which are labelled."""

    def ends(self, rows: Dataset) -> list[int]:
        """The tokens that end an answer."""
        return [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]

    def lead(self, rows: Dataset) -> list[int]:
        """The tokens that a model writes before every answer, and that are no part of it."""
        return []

    def beside(self) -> list[Column]:
        """The columns of choices."""
        columns = [getattr(metric, "choices_column", None) for metric in self.recipe.task.metrics]
        return [(f"task.metrics.{n}.choices_column", name) for n, name in enumerate(columns) if name is not None]

    def answered(self, rows: Dataset, answers: Sequence[str]) -> Dataset:
        """The rows with other responses."""
        return with_column(rows, self.column("response_column"), list(answers))


def set_generation(model: PreTrainedModel, **settings: Any) -> None:
    """Change how a model generates, so that it can still be saved: transformers refuses a config with settings that do
    not fit together, as a published one's may not, unless it is as it was loaded."""
    config: Any = model.generation_config
    for name, value in settings.items():
        setattr(config, name, value)
    config._original_object_hash = hash(config)


def _answer(labels: Sequence[int]) -> tuple[int, ...]:
    return tuple(label for label in labels if label != IGNORED)
