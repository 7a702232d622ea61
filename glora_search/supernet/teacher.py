"""The supernet as a teacher: the mean prediction of several of its subnets, which share weights and err differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from glora_search.scoring import IGNORED, Batch, Batches, Evaluation, Scoring, on_device, summed
from glora_search.space.bound import BoundSpace
from glora_search.space.layers import Genome
from glora_search.supernet.sampling import SizeSampling
from glora_search.training.answers import TOP, Answers
from glora_search.training.distillation import with_soft_labels

UNSEEN = 1_000_000
"""A step that no training reaches: its subnets are drawn as those of a training are, and are others."""


def draw_members(space: BoundSpace, *, count: int = 8, max_params: int | None = None, seed: int = 0) -> list[Genome]:
    """Subnets of all sizes whose mean prediction teaches.

    Args:
        count: how many.
        max_params: the largest size; None is the space's largest.
    """
    sampling = SizeSampling(space, seed=seed, max_params=max_params)
    return [sampling(UNSEEN + member)[0] for member in range(count)]


@dataclass
class Teacher:
    """The mean of several subnets.

    Attributes:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        members: the subnets that teach.
        scoring: of the task.
        batch_size: rows of a batch.
    """

    supernet: Any
    members: Sequence[Genome]
    scoring: Scoring
    batch_size: int = 64
    answers: Answers | None = field(default=None, init=False)

    def teach(self, rows: Dataset) -> Dataset:
        """Encoded rows with what the teacher says of them, see `with_soft_labels`."""
        batches = Batches(rows, self.scoring.collator, self.batch_size)
        said: list[Tensor] = [torch.empty(0)] * len(rows)
        classes: list[Tensor] = list(said)
        for number, batch in enumerate(batches):
            order = batches.order[number * self.batch_size : (number + 1) * self.batch_size]
            found, _ = self._said(batch)
            assert self.answers is not None
            if not self.answers.by_token:
                for row, own in zip(order, found, strict=True):
                    said[row] = own
                continue
            best, which = found.topk(min(TOP, found.shape[-1]))
            counts = self._counts(batch["labels"])
            for row, own, own_classes in zip(order, best.split(counts), which.split(counts), strict=True):
                said[row], classes[row] = own, own_classes
        by_token = self.answers is not None and self.answers.by_token
        return with_soft_labels(rows, said, classes if by_token else None)

    def evaluate(self, rows: Dataset) -> Evaluation:
        """What the teacher itself is worth."""
        tallies, losses = list[np.ndarray](), list[Tensor]()
        for batch in Batches(rows, self.scoring.collator, self.batch_size):
            found, labels = self._said(batch)
            assert self.answers is not None
            logits = self.answers.logits_of(found)
            losses.append(self.answers.losses(logits, labels))
            tally = self._tally(logits, batch["labels"])
            tallies.append(summed(self.scoring, tally.double().numpy()))
        sums = np.concatenate(tallies) if self.scoring.by_rows else np.sum(tallies, axis=0)
        return Evaluation(self.scoring.score(sums), float(torch.cat(losses).double().mean()))

    @torch.inference_mode()
    def _said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean of what the members say of a batch's items, on the CPU, and the items' labels."""
        self.supernet.eval()
        device = next(self.supernet.parameters()).device
        inputs = on_device(batch, device)
        fold, total = self.supernet.folding_fits(), None
        for genome in self.members:
            with self.supernet.scored(genome, fold):
                logits = self.supernet(**inputs).logits
            self.answers = self.answers or Answers.of(self.supernet, logits, inputs["labels"])
            logits, labels = self.answers.items(logits, inputs["labels"])
            said = self.answers.said(logits)
            total = said if total is None else total + said
        assert total is not None
        return torch.div(total, len(self.members)).cpu(), labels.cpu()

    def _counts(self, labels: Tensor) -> list[int]:
        """The items of each row."""
        assert self.answers is not None
        labels = labels[:, 1:] if self.answers.kind == "next tokens" else labels
        counts: list[int] = labels.ne(IGNORED).sum(1).tolist()
        return counts

    def _tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The metric's tally of items; of tokens row by row, since logits of whole batches can be gigabytes."""
        assert self.answers is not None
        if not self.answers.by_token:
            return self.scoring.tally(logits, labels)
        rows = []
        for own, truth in zip(logits.split(self._counts(labels)), labels, strict=True):
            whole = torch.zeros(1, len(truth), logits.shape[-1])
            where = truth.ne(IGNORED)
            if self.answers.kind == "next tokens":
                where = torch.cat([where[1:], where.new_zeros(1)])
            whole[0, where] = own
            rows.append(self.scoring.tally(whole, truth[None]))
        return torch.cat(rows)
