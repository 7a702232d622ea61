"""Learning from a teacher as well as from the labels: what it says of the train rows, made once.

Source: distillation, Hinton et al. (arXiv 1503.02531), at temperature 1; the teacher is the mean of several subnets of
a supernet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from glora_search.errors import invalid
from glora_search.scoring import IGNORED
from glora_search.tasks.rows import with_column
from glora_search.training.answers import TOP, Answers
from glora_search.training.trainer import PathTrainer

SOFT_LABELS = "soft_labels"
"""The column, and the key of a batch, that has what the teacher says: ``[k]`` of a row, or ``[items * top]``."""
SOFT_CLASSES = "soft_classes"
"""Where rows have many items: the classes that the teacher's distributions are of, ``[items * top]``."""


class DistillationTrainer(PathTrainer):
    """A `PathTrainer` whose train rows may have soft labels, see `with_soft_labels`.

    The loss is ``(1 - share) * loss + share * distance``, where the distance to the teacher is the mean of
    `Answers.distances`. A row of one class whose label is -100 is unlabelled: it learns from the teacher alone. Rows of
    an evaluation have no soft labels and are scored as always.

    Args:
        teacher_share: the teacher's share of the loss, 0 to 1.
        args, kwargs: as in `PathTrainer`.

    Raises:
        UserError: the share is not a number from 0 to 1.
    """

    def __init__(self, *args: Any, teacher_share: float = 0.5, **kwargs: Any) -> None:
        if not 0 <= teacher_share <= 1:
            raise invalid("teacher_share", teacher_share, "a number from 0 to 1")
        self.teacher_share = teacher_share
        super().__init__(*args, **kwargs)
        own: Any = self
        own.args = copy.copy(own.args)
        own.args.remove_unused_columns = False  # no model takes soft labels
        inner: Any = self.data_collator
        self.data_collator: Any = SoftCollator(inner)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of the labels and of the teacher while training, the plain loss otherwise."""
        self._keep_statistics()
        soft, classes = inputs.pop(SOFT_LABELS, None), inputs.pop(SOFT_CLASSES, None)
        if soft is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        if labels.ndim == 1 and not labels.is_floating_point() and bool((labels == IGNORED).any()):
            loss, outputs = self._class_loss(model, inputs, soft)
        else:
            plain, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            answers = Answers.of(self.accelerator.unwrap_model(model), outputs["logits"], labels)
            logits, _ = answers.items(outputs["logits"], labels)
            distances = answers.distances(logits, *_taught(answers, logits, soft, classes, labels))
            loss = (1 - self.teacher_share) * plain + self.teacher_share * self._mean(distances, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _class_loss(self, model: nn.Module, inputs: dict[str, Any], soft: Tensor) -> tuple[Tensor, Any]:
        """The loss of rows with one label each, where some have none: what a model makes of those is not known."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs["logits"].float()
        if logits.shape != soft.shape:
            raise invalid("soft_labels", tuple(soft.shape), f"one distribution a row of logits {tuple(logits.shape)}")
        smoothing = self.args.label_smoothing_factor
        plain = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=IGNORED, reduction="none")
        distances = Answers("class").distances(logits, soft.to(logits))
        share = torch.where(labels == IGNORED, 1.0, self.teacher_share)
        return ((1 - share) * plain + share * distances).mean(), outputs


def _taught(
    answers: Answers, logits: Tensor, soft: Tensor, classes: Tensor | None, labels: Tensor
) -> tuple[Tensor, Tensor] | tuple[Tensor]:
    """What the teacher says of a batch's items; of tokens, without what rows are padded with."""
    if not answers.by_token:
        return (soft.float(),)
    assert classes is not None
    top = min(TOP, logits.shape[-1])
    numbers = top * answers.counted(labels).sum(1, keepdim=True)
    there = torch.arange(soft.shape[1], device=soft.device) < numbers
    if int(there.sum()) != int(numbers.sum()):
        raise invalid("soft_labels", int(there.sum()), f"{top} for each of {len(logits)} tokens")
    return soft[there].view(-1, top).float(), classes[there].view(-1, top)


class SoftCollator:
    """A collator of rows that may have soft labels, which are put beside what the inner one makes.

    Args:
        collator: list of encoded rows -> batch.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch."""
        own = (SOFT_LABELS, SOFT_CLASSES)
        plain = [{name: value for name, value in row.items() if name not in own} for row in rows]
        batch = dict(self.collator(plain))
        for name, kind in zip(own, (torch.float32, torch.long), strict=True):
            if name in rows[0]:
                values = [torch.as_tensor(row[name], dtype=kind).flatten() for row in rows]
                batch[name] = nn.utils.rnn.pad_sequence(values, batch_first=True)
        return batch


def with_soft_labels(
    rows: Dataset, soft: Tensor | Sequence[Tensor], classes: Sequence[Tensor] | None = None
) -> Dataset:
    """The rows with what a teacher says of them, which is read as numpy arrays, or in the format that the rows have.

    Args:
        soft: ``[rows, k]``; or for each row ``[items, top]``.
        classes: for each row ``[items, top]``.
    """
    form = rows.format
    columns = {SOFT_LABELS: _lists([*soft], torch.float32)}
    if classes is not None:
        columns[SOFT_CLASSES] = _lists(classes, torch.int32)
    for name, column in columns.items():
        rows = with_column(rows, name, column)
    if form["type"] is None:
        return rows.with_format("numpy", columns=sorted(columns), output_all_columns=True)  # as select would sort them
    shown = sorted([*form["columns"], *columns])
    return rows.with_format(form["type"], shown, form["output_all_columns"], **form["format_kwargs"])


def _lists(rows: Sequence[Tensor], dtype: torch.dtype) -> Any:
    """A column of flat lists, without a Python object for each number: of tokens there are many."""
    ends = np.cumsum([0, *(row.numel() for row in rows)])
    flat = torch.cat([row.to(dtype).flatten() for row in rows])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat.numpy()))


def with_unlabelled(labelled: Dataset, unlabelled: Dataset) -> Dataset:
    """Both kinds of rows, about as many of each: the labelled ones are repeated where they are fewer.

    Args:
        labelled, unlabelled: with the columns that `with_soft_labels` makes.
    """
    times = max(1, round(len(unlabelled) / len(labelled)))
    return concatenate_datasets([*[labelled] * times, unlabelled])
