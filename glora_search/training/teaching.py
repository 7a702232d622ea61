"""The mean prediction of several models: as soft labels that others learn from, and what it is worth itself."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from glora_search.scoring import Batches, Evaluation, Scoring, summed
from glora_search.training.answers import TOP, Answers
from glora_search.training.distillation import with_soft_labels


class MeanPrediction(abc.ABC):
    """What several models say on average.

    Attributes:
        scoring: of the task.
        batch_size: rows of a batch.
        answers: how the models' logits are read; known once they were asked.
    """

    scoring: Scoring
    batch_size: int
    answers: Answers | None

    @abc.abstractmethod
    def said(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """The mean of what the models say of each batch's items, ``[items, k]`` on the CPU, and the batch's labels."""

    def teach(self, rows: Dataset) -> Dataset:
        """Encoded rows with what the models say of them, see `with_soft_labels`."""
        batches = Batches(rows, self.scoring.collator, self.batch_size)
        said: list[Tensor] = [torch.empty(0)] * len(rows)
        classes: list[Tensor] = list(said)
        order = iter(batches.order)
        for found, labels in self.said(batches):
            assert self.answers is not None
            if not self.answers.by_token:
                for own in found:
                    said[next(order)] = own
                continue
            best, which = found.topk(min(TOP, found.shape[-1]))
            counts = self.answers.counted(labels).sum(1).tolist()
            for own, own_classes in zip(best.split(counts), which.split(counts), strict=True):
                row = next(order)
                said[row], classes[row] = own, own_classes
        by_token = self.answers is not None and self.answers.by_token
        return with_soft_labels(rows, said, classes if by_token else None)

    def evaluate(self, rows: Dataset) -> Evaluation:
        """What the mean itself is worth."""
        tallies, losses = list[np.ndarray](), list[Tensor]()
        for found, labels in self.said(Batches(rows, self.scoring.collator, self.batch_size)):
            assert self.answers is not None
            logits = self.answers.logits_of(found)
            losses.append(self.answers.losses(logits, self.answers.labels_of(labels)))
            tallies.append(summed(self.scoring, self._tally(logits, labels).double().numpy()))
        sums = np.concatenate(tallies) if self.scoring.by_rows else np.sum(tallies, axis=0)
        return Evaluation(self.scoring.score(sums), float(torch.cat(losses).double().mean()))

    def _tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The metric's tally of items; of tokens row by row, since logits of whole batches can be gigabytes."""
        assert self.answers is not None
        if not self.answers.by_token:
            return self.scoring.tally(logits, labels)
        rows, counted = [], self.answers.counted(labels)
        for own, truth, where in zip(logits.split(counted.sum(1).tolist()), labels, counted, strict=True):
            whole = torch.zeros(1, len(truth), logits.shape[-1])
            whole[0, : len(where)][where] = own
            rows.append(self.scoring.tally(whole, truth[None]))
        return torch.cat(rows)
