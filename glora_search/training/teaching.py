"""The mean prediction of several models: as soft labels that others learn from, and what it is worth itself."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

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
        """The mean of what the models say of each batch's items, ``[items, k]``, and the batch's labels beside it.

        Of tokens it can be gigabytes, so it stays on the device where it was made.
        """

    def _read(self, model: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """What one model says of a batch's items, by its logits."""
        self.answers = self.answers or Answers.of(model, logits, labels)
        logits, _ = self.answers.items(logits, labels)
        return self.answers.said(logits)

    def teach(self, rows: Dataset) -> Dataset:
        """Encoded rows with what the models say of them, see `with_soft_labels`."""
        batches = Batches(rows, self.scoring.collator, self.batch_size)
        said: list[Tensor] = [torch.empty(0)] * len(rows)
        classes: list[Tensor] = list(said)
        order = iter(batches.order)
        for found, labels in self.said(batches):
            assert self.answers is not None
            if not self.answers.by_token:
                for own in found.cpu():
                    said[next(order)] = own
                continue
            best, which = found.topk(min(TOP, found.shape[-1]))
            counts = self.answers.counted(labels).sum(1).tolist()
            for own, own_classes in zip(best.cpu().split(counts), which.int().cpu().split(counts), strict=True):
                row = next(order)
                said[row], classes[row] = own, own_classes
        by_token = self.answers is not None and self.answers.by_token
        return with_soft_labels(rows, said, classes if by_token else None)

    def evaluate(self, rows: Dataset) -> Evaluation:
        """What the mean itself is worth."""
        tallies, losses = list[np.ndarray](), list[Tensor]()
        for found, labels in self.said(Batches(rows, self.scoring.collator, self.batch_size)):
            for own, truth in self._parts(found, labels):
                assert self.answers is not None
                logits = self.answers.logits_of(own)
                losses.append(self.answers.losses(logits, self.answers.labels_of(truth)).cpu())
                tally = self.scoring.tally(self._placed(logits, truth), truth).cpu().double().numpy()
                tallies.append(summed(self.scoring, tally))
        sums = np.concatenate(tallies) if self.scoring.by_rows else np.sum(tallies, axis=0)
        return Evaluation(self.scoring.score(sums), float(torch.cat(losses).double().mean()))

    def _parts(self, found: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A batch; of tokens row by row, since logits of whole batches can be gigabytes."""
        assert self.answers is not None
        if not self.answers.by_token:
            yield found, labels
            return
        counts = self.answers.counted(labels).sum(1).tolist()
        yield from zip(found.split(counts), labels.split(1), strict=True)

    def _placed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits of items where the metric looks for them: those of a row of tokens, at their places."""
        assert self.answers is not None
        if not self.answers.by_token:
            return logits
        counted = self.answers.counted(labels)
        whole = logits.new_zeros(*labels.shape, logits.shape[-1])
        whole[:, : counted.shape[1]][counted] = logits
        return whole
