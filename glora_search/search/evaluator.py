"""Genome -> metrics: scoring models and subnets at the bare model's speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from glora_search.space import Genome

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What a subnet is worth on the search-validation data.

    Attributes:
        metric: the task's metric.
        loss: mean loss a row; it breaks ties.
        share: the share of the rows that was scored.
    """

    metric: float
    loss: float = 0.0
    share: float = 1.0


class Task(Protocol):
    """What scoring needs to know of a task."""

    collator: Any

    def score(self, logits: np.ndarray, labels: np.ndarray) -> float: ...


def length_sorted_batches(dataset: Dataset, collator: Any, batch_size: int) -> list[Batch]:
    """Collate rows of similar length together, so that hardly any padding is computed."""
    order = np.argsort([len(ids) for ids in dataset["input_ids"]], kind="stable")
    rows = [dataset[int(index)] for index in order]
    return [dict(collator(rows[start : start + batch_size])) for start in range(0, len(rows), batch_size)]


@torch.inference_mode()
def predict(model: nn.Module, batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray, float]:
    """Run a model over batches.

    Returns:
        Logits ``[rows, classes]`` in float32, labels ``[rows]``, and the mean loss a row.
    """
    model.eval()
    device = next(model.parameters()).device
    logits, labels, loss, rows = [], [], 0.0, 0
    for batch in batches:
        output = model(**{name: value.to(device) for name, value in batch.items()})
        size = len(batch["labels"])
        loss += float(output.loss) * size
        rows += size
        logits.append(output.logits.float().cpu().numpy())
        labels.append(batch["labels"].numpy())
    return np.concatenate(logits), np.concatenate(labels), loss / rows


def evaluate(
    model: nn.Module, batches: Sequence[Batch], score: Callable[[np.ndarray, np.ndarray], float]
) -> Evaluation:
    """Score a model."""
    logits, labels, loss = predict(model, batches)
    return Evaluation(score(logits, labels), loss)


class SubnetEvaluator:
    """Genome -> `Evaluation`, with the weights that the subnet inherits from a supernet.

    Args:
        supernet: a ``PeftModel`` made with a `SupernetConfig`.
        dataset: tokenized rows, with ``input_ids`` and ``labels``.
        task: its collator and its metric.
        batch_size: rows a batch.
    """

    def __init__(self, supernet: Any, dataset: Dataset, task: Task, batch_size: int = 64) -> None:
        self.supernet, self.task = supernet, task
        self.batches = length_sorted_batches(dataset, task.collator, batch_size)
        self._legs = _legs(dataset, task.collator, batch_size)

    def __call__(self, genome: Genome) -> Evaluation:
        with self.supernet.folded(genome):
            return evaluate(self.supernet, self.batches, self.task.score)

    def legs(self, genome: Genome) -> Iterator[Evaluation]:
        """The evaluation in parts: after an eighth, a quarter and half of the rows, and after all of them.

        The first rows are a random part of all, the same for each genome. Close the iterator where it is left early:
        up to then the subnet is folded into the model.
        """
        with self.supernet.folded(genome):
            found: list[tuple[np.ndarray, np.ndarray, float]] = []
            for batches in self._legs:
                found.append(predict(self.supernet, batches))
                rows = [len(labels) for _, labels, _ in found]
                metric = self.task.score(*(np.concatenate([part[i] for part in found]) for i in (0, 1)))
                loss = float(np.average([loss for _, _, loss in found], weights=rows))
                yield Evaluation(metric, loss, sum(rows) / self._rows)

    @property
    def _rows(self) -> int:
        return sum(len(batch["labels"]) for batch in self.batches)


def _legs(dataset: Dataset, collator: Any, batch_size: int) -> list[list[Batch]]:
    """The rows in random parts, each sorted by length; a part smaller than a batch is not worth its forward."""
    order = np.random.default_rng(0).permutation(len(dataset))
    ends = [len(order) // part for part in (8, 4, 2) if len(order) // part >= batch_size] + [len(order)]
    parts = [order[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return [length_sorted_batches(dataset.select(part), collator, batch_size) for part in parts]
