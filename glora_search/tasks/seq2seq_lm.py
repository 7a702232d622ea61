"""Encoder-decoder language models: a response to a text, as T5 and BART give it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from glora_search.errors import invalid
from glora_search.files.python import arguments
from glora_search.tasks.language_model import Fit, LanguageModel, Question, set_generation
from glora_search.tasks.rows import Column
from glora_search.tuners.heads import loss_in_float32


class Seq2SeqLM(LanguageModel):
    """Reads ``response_column``, the answer to ``task.prompt`` (or to the text column where there is no prompt).

    Each of the two is cut at ``max_length``; a response that is cut has no end.
    """

    task_type = "SEQ_2_SEQ_LM"
    auto_class = AutoModelForSeq2SeqLM

    def targets(self) -> list[Column]:
        """See `LanguageModel`."""
        if not self.responds:
            raise invalid("data.response_column", None, "the column with the texts that the model is to write")
        return super().targets()

    def encode(self, rows: Dataset) -> Dataset:
        """Columns ``input_ids``, ``attention_mask``, and ``labels``, the tokens of the response."""
        prompts, longest = self.prompts(rows), self.max_length
        encoded = self.tokenizer(prompts, truncation=True, max_length=longest)
        labels = self.tokenizer(text_target=self.responses(rows), verbose=False)["input_ids"]
        sizes = zip(map(len, self.token_ids(prompts)), map(len, labels), strict=True)
        self.fit = Fit(len(rows), cut=sum(max(both) > longest for both in sizes))
        # Not by the tokenizer, which ends what it has cut as if it were whole.
        return Dataset.from_dict({**encoded, "labels": [response[:longest] for response in labels]})

    def questions(self, rows: Dataset) -> list[Question]:
        """See `LanguageModel`; prompts are cut as in training."""
        prompts = self.prompts(rows)
        return list(map(Question, prompts, self._prompt_ids(prompts), self.responses(rows)))

    def completed(self, rows: Dataset, answers: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        """See `LanguageModel`; the labels are the answer alone."""
        labels: list[list[int]] = self.tokenizer(text_target=list(answers), verbose=False)["input_ids"]
        return list(zip(self._prompt_ids(self.prompts(rows)), labels, strict=True))

    def _prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(prompts, truncation=True, max_length=self.max_length)["input_ids"]
        return ids

    def model(self, seed: int | None = None) -> PreTrainedModel:
        """See `Task.model`; the model writes answers as long as those that it learned, not generate's 20 tokens."""
        model = super().model(seed)
        set_generation(model, max_new_tokens=self.max_length)
        loss_in_float32(model)
        return model

    def load_merged(self, folder: str) -> Any:
        """See `Task.load_merged`."""
        model = super().load_merged(folder)
        loss_in_float32(model)
        return model

    @classmethod
    def usage(cls, folder: str, example: str = "", **loading: Any) -> str:
        """See `Task`; transformers has no pipeline for these models."""
        return (
            "from transformers import AutoModelForSeq2SeqLM as M, AutoTokenizer as T; "
            f"m, t = (c.from_pretrained({arguments(folder, **loading)}) for c in (M, T)); "
            f"answer = m.generate(**t({example or cls.example}, return_tensors='pt'), do_sample=False)[0]; "
            "print(t.decode(answer, skip_special_tokens=True))"
        )
