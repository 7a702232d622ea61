"""Scoring a model: rows in batches, what they add to a metric, and the evaluation that results.

Tasks and the search both stand on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import default_data_collator
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from glora_search.errors import invalid

Batch = dict[str, Any]
"""What a model's forward is given: tensors, and seldom an option."""
Metric = Callable[[Tensor, Tensor], Tensor]
"""``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth; the mean is the metric."""
IGNORED = -100
"""The label of what does not count, as everywhere in transformers."""


@dataclass(frozen=True)
class Evaluation:
    """What a subnet is worth on the search-validation data.

    Attributes:
        metric: the task's metric.
        loss: mean loss of a label, which is a row's or a token's; it breaks ties.
        share: the share of the rows that was scored.
        also: further figures of the task, by their names.
    """

    metric: float
    loss: float = 0.0
    share: float = 1.0
    also: dict[str, float] = field(default_factory=dict, compare=False)


class Scoring(Protocol):
    """How results are scored: a `glora_search.tasks.Task`, or a `RowMetric`.

    Attributes:
        metric: the metric's name.
        direction: whether a higher or a lower metric is better, ``maximize`` or ``minimize``.
        by_rows: whether the metric needs the tallies of all rows, such as a correlation of ranks, not only their sums.
        collator: list of rows -> batch with ``labels``.
    """

    metric: str
    collator: Any

    @property
    def direction(self) -> str: ...

    @property
    def by_rows(self) -> bool: ...

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What each row adds to the metric: ``[rows, k]``."""
        ...

    def score(self, sums: np.ndarray) -> float:
        """The metric, of the sums ``[k]`` over all rows, or of all rows ``[rows, k]``."""
        ...

    def also(self, sums: np.ndarray) -> dict[str, float]:
        """Further figures, of the same."""
        ...


class RowMetric:
    """A metric that is a mean over rows.

    Args:
        worth: ``logits [rows, ...], labels [rows, ...] -> [rows]``: what each row is worth. Accuracy is
            ``lambda logits, labels: logits.argmax(-1) == labels``.
        collator: list of rows -> batch, as in ``Trainer``; None needs rows of one length.
        direction: whether a higher or a lower mean is better.
    """

    metric = "metric"
    by_rows = False

    def __init__(
        self,
        worth: Metric,
        collator: Any = None,
        direction: Literal["maximize", "minimize"] = "maximize",
    ) -> None:
        self.worth, self.direction = worth, direction
        self.collator = collator or default_data_collator

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What each row is worth, and 1: ``[rows, 2]``.

        Raises:
            UserError: ``worth`` gives something else than a value for each row.
        """
        worth: Any = self.worth(logits, labels)
        if not isinstance(worth, Tensor) or worth.shape != labels.shape[:1]:
            given = f"a tensor {list(worth.shape)}" if isinstance(worth, Tensor) else type(worth).__name__
            raise invalid("metric", given, f"a tensor [rows], here [{len(labels)}]: one value a row")
        worth = worth.float()
        return torch.stack([worth, torch.ones_like(worth)], dim=1)

    def score(self, sums: np.ndarray) -> float:
        """The mean over the rows."""
        return float(sums[0] / sums[1])

    def also(self, sums: np.ndarray) -> dict[str, float]:
        """Nothing."""
        return {}


def shortest_first(dataset: Dataset) -> np.ndarray:
    """The rows of a data set by their length in tokens; as they are where they have none."""
    text = "input_ids" in dataset.column_names
    lengths = [len(ids) for ids in dataset["input_ids"]] if text else [0] * len(dataset)
    return np.argsort(lengths, kind="stable")


class Batches(Sequence[Batch]):
    """Rows of similar length in one batch, so that hardly any padding is computed; each batch is made when it is asked
    for.

    Attributes:
        order: the rows of the data set in the order in which they stand in the batches.
    """

    def __init__(self, dataset: Dataset, collator: Any, batch_size: int) -> None:
        self.dataset, self.collator, self.batch_size = dataset, collator, batch_size
        self.order = shortest_first(dataset)

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return dict(self.collator([self.dataset[int(row)] for row in rows]))


def length_sorted_batches(dataset: Dataset, collator: Any, batch_size: int) -> list[Batch]:
    """All batches of a data set, see `Batches`."""
    return list(Batches(dataset, collator, batch_size))


def summed(scoring: Scoring, tallies: np.ndarray) -> np.ndarray:
    """What `Scoring.score` is given of tallies ``[rows, k]``."""
    return tallies if scoring.by_rows else tallies.sum(0)


def items_of(labels: Tensor, *, shifted: bool) -> Tensor:
    """How many of each row's labels count, of numbers all: ``[rows]``.

    Args:
        shifted: of a model that predicts the next token; no token predicts a row's first one.
    """
    rows = labels.reshape(len(labels), -1)
    if rows.is_floating_point():
        return torch.ones_like(rows).sum(1)
    return (rows[:, 1:] if shifted else rows).ne(IGNORED).sum(1)


def base_of(model: Any) -> Any:
    """A model without what peft has put around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_causal_lm(model: Any) -> bool:
    """Whether a model is a causal language model.

    The class says it: by its name, or since ``AutoModelForCausalLM`` makes it, such as Gemma 3's, which is named after
    conditional generation.
    """
    name = type(base_of(model)).__name__
    return name.endswith(("ForCausalLM", "LMHeadModel")) or name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def predicts_next(model: Any) -> bool:
    """Whether a model's logits at a token are those of the next one: a causal language model's, or those of a model
    that writes about images, unless its text model has an encoder."""
    base = base_of(model)
    name = type(base).__name__
    if name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values() and name.endswith("ForConditionalGeneration"):
        return not (base.config.is_encoder_decoder or base.config.get_text_config().is_encoder_decoder)
    return is_causal_lm(base)


def known_tokens(model: Any) -> int | None:
    """How many tokens a model has; None where its inputs are none."""
    try:
        return int(base_of(model).get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):
        return None


def largest_token(rows: Dataset) -> int:
    """The largest of the ``input_ids``; -1 where there are none."""
    if "input_ids" not in rows.column_names:
        return -1
    return max((int(np.asarray(ids).max(initial=-1)) for ids in rows["input_ids"]), default=-1)


@dataclass
class Sums:
    """What a task's metric and the mean loss come from, summed over batches.

    Attributes:
        tallies: what `summed` made of each batch.
        loss: of all items.
        items: the labels that count: rows, or tokens. Of numbers, all count.
        rows: the rows.
    """

    tallies: list[np.ndarray] = field(default_factory=list)
    loss: float = 0.0
    items: int = 0
    rows: int = 0

    @torch.inference_mode()
    def add(self, model: nn.Module, batches: Iterable[Batch], scoring: Scoring) -> None:
        """Run a model over batches; nothing of a batch but its sums is kept."""
        shifted = predicts_next(model)
        for batch, output in outputs(model, batches):
            labels = batch["labels"].to(output.logits.device)
            items = int(items_of(labels, shifted=shifted).sum())
            if items:
                tally = scoring.tally(output.logits, labels).cpu().double().numpy()
                self.tallies.append(summed(scoring, tally))
                self.loss += float(output.loss) * items
            self.items += items
            self.rows += len(labels)

    def evaluation(self, scoring: Scoring, rows: int | None = None) -> Evaluation:
        """The metric and the mean loss.

        Args:
            rows: of how many rows this is a part; None where it is all.
        """
        share = 1.0 if rows is None else self.rows / rows
        sums = np.concatenate(self.tallies) if scoring.by_rows else np.sum(self.tallies, axis=0)
        return Evaluation(scoring.score(sums), self.loss / self.items, share, scoring.also(sums))


def outputs(model: nn.Module, batches: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """What a model makes of batches, one after the other."""
    model.eval()
    device = next(model.parameters()).device
    for batch in batches:
        yield batch, model(**on_device(batch, device))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch where a model is."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


@torch.inference_mode()
def logits_of(model: nn.Module, batches: Sequence[Batch], *, limit: int = 1 << 26) -> list[Tensor]:
    """A model's logits, in float32, batch by batch from the longest on: up to ``limit`` numbers, but at least a row."""
    found: list[Tensor] = []
    for _, output in outputs(model, reversed(batches)):
        rows = max(1, limit // output.logits[0].numel())
        found.append(output.logits[:rows].float().cpu())
        limit -= found[-1].numel()
        if rows <= len(output.logits):
            break
    return found


def has_diverged(model: nn.Module) -> bool:
    """Whether a trained weight is not finite any more: it stays so, whatever is trained on."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return not all(bool(torch.isfinite(parameter).all()) for parameter in trained)


def evaluate(model: nn.Module, batches: Iterable[Batch], scoring: Scoring) -> Evaluation:
    """Score a model."""
    sums = Sums()
    sums.add(model, batches, scoring)
    return sums.evaluation(scoring)
