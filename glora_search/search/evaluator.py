"""Genome -> metrics: scoring models and subnets at the bare model's speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        metric: the task's metric, a fraction in [0, 1], higher is better.
        loss: mean loss a row; it breaks ties.
    """

    metric: float
    loss: float


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

    def __call__(self, genome: Genome) -> Evaluation:
        with self.supernet.folded(genome):
            return evaluate(self.supernet, self.batches, self.task.score)
