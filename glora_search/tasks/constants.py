"""What an answer is worth that is the same for every row, and so looks at none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from glora_search.scoring import IGNORED, Evaluation, Scoring, summed

FREQUENT = 20
"""The best constant answer is looked for among so many of the most frequent ones."""


def one_hot(counts: Counter[int], classes: int) -> list[list[float]]:
    """Logits ``[classes]`` that say one of the most frequent classes, for each of those."""
    return [[float(number == one) for number in range(classes)] for one, _ in counts.most_common(FREQUENT)]


def score_constant(scoring: Scoring, rows: Dataset, answer: Sequence[float], *, whole_rows: bool) -> Evaluation:
    """The metric of one answer.

    Args:
        rows: encoded; their ``labels`` alone are read.
        answer: logits ``[k]``.
        whole_rows: whether it is the answer for a row, also where that has several labels; else for each label.
    """
    tallies = []
    for batch in rows.select_columns("labels").iter(256):
        labels = _padded(batch["labels"])
        items = labels.shape[:1] if whole_rows else labels.shape
        logits = torch.tensor(answer).expand(*items, len(answer))
        tallies.append(summed(scoring, scoring.tally(logits, labels).double().numpy()))
    sums = np.concatenate(tallies) if scoring.by_rows else np.sum(tallies, axis=0)
    return Evaluation(scoring.score(sums), also=scoring.also(sums))


def _padded(labels: list[Any]) -> Tensor:
    """Labels of a batch, with rows of one length."""
    if isinstance(labels[0], list):
        return pad_sequence([torch.tensor(row) for row in labels], batch_first=True, padding_value=IGNORED)
    return torch.tensor(labels)
