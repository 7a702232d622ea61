"""Tiny language models that are asked something, and answer what a test says."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make, recipe, task, tiny
from torch import nn

__all__ = ["make", "recipe", "task", "tiny"]

TYPES = {"llama": "causal-lm", "gpt2": "causal-lm", "t5": "seq2seq-lm"}


@pytest.fixture
def asking(task, make):
    """``asking(metrics, architecture="llama", rows=None, **task)``: a language model's task with metrics."""

    def build(metrics, architecture="llama", rows=None, **options):
        if rows is None:
            answers = {"sports": "the goal", "tech": "the chip"}
            rows = [
                {"text": text, "answer": answers[label], "options": "the goal|the chip|the team"}
                for text, label in make.sentences(40)
            ]
        data = options.pop("data", {"response_column": "answer"})
        return task(architecture, TYPES[architecture], rows, data, metrics=metrics, **options)

    return build


class Parrot(nn.Module):
    """A causal model that writes one text, whatever it is asked, and then ends.

    Args:
        answers: prompt's tokens, or None for all others -> what it writes.
    """

    def __init__(self, tokenizer, answers):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.answers = tokenizer, answers
        self.batches = []

    def can_generate(self):
        return True

    def generate(self, input_ids, attention_mask, generation_config):
        self.batches.append((input_ids, attention_mask, generation_config))
        texts = [
            self.answers.get(self.tokenizer.decode(ids[mask.bool()], skip_special_tokens=True), self.answers[None])
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        ends = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        end, longest = self.tokenizer.eos_token_id, max(map(len, ends))
        new = torch.tensor([[*ids, *[end] * (longest + 1 - len(ids))] for ids in ends])
        return torch.cat([input_ids, new], dim=1)


@pytest.fixture
def parrot():
    """See `Parrot`."""
    return Parrot
