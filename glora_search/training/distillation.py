"""Learning from a teacher as well as from the labels: soft labels made once, one distribution a train row.

Source: distillation, Hinton et al. (arXiv 1503.02531), at temperature 1; the teacher is the mean of several subnets of
a supernet.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

from glora_search.errors import invalid
from glora_search.scoring import IGNORED, Batch, Batches
from glora_search.tasks.rows import with_column
from glora_search.training.trainer import PathTrainer

SOFT_LABELS = "soft_labels"
"""The column, and the key of a batch, that has the teacher's distribution."""


class DistillationTrainer(PathTrainer):
    """A `PathTrainer` whose train rows may have soft labels, see `with_soft_labels`.

    The loss of a row is ``(1 - share) * loss + share * KL(teacher || student)``, and the second term alone, at share 1,
    where its label is -100: an unlabelled row. Rows of an evaluation have no soft labels and are scored as always.

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
        soft = inputs.pop(SOFT_LABELS, None)
        if soft is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs["logits"].float()
        if logits.shape != soft.shape:
            raise invalid("soft_labels", tuple(soft.shape), f"one distribution a row of logits {tuple(logits.shape)}")
        smoothing = self.args.label_smoothing_factor
        plain = F.cross_entropy(logits, labels, label_smoothing=smoothing, ignore_index=IGNORED, reduction="none")
        divergence = F.kl_div(F.log_softmax(logits, dim=-1), soft.to(logits), reduction="none").sum(-1)
        share = torch.where(labels == IGNORED, 1.0, self.teacher_share)
        loss = ((1 - share) * plain + share * divergence).mean()
        return (loss, outputs) if return_outputs else loss


class SoftCollator:
    """A collator of rows that may have soft labels: ``[rows, classes]`` beside what the inner one makes.

    Args:
        collator: list of encoded rows -> batch.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch."""
        plain = [{name: value for name, value in row.items() if name != SOFT_LABELS} for row in rows]
        batch = dict(self.collator(plain))
        if SOFT_LABELS in rows[0]:
            batch[SOFT_LABELS] = torch.tensor([row[SOFT_LABELS] for row in rows], dtype=torch.float32)
        return batch


def with_soft_labels(rows: Dataset, soft: Tensor) -> Dataset:
    """The rows with a teacher's distributions.

    Args:
        soft: ``[rows, classes]``, each row adds up to 1.
    """
    return with_column(rows, SOFT_LABELS, soft.tolist())


def with_unlabelled(labelled: Dataset, unlabelled: Dataset) -> Dataset:
    """Both kinds of rows, about as many of each: the labelled ones are repeated where they are fewer.

    Args:
        labelled, unlabelled: with the columns that `with_soft_labels` makes.
    """
    times = max(1, round(len(unlabelled) / len(labelled)))
    return concatenate_datasets([*[labelled] * times, unlabelled])


@torch.inference_mode()
def distributions(model: nn.Module, batches: Iterable[Batch]) -> Tensor:
    """A model's distributions over the classes, batch by batch: ``[rows, classes]`` in float32."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for batch in batches:
        output = model(**{name: value.to(device) for name, value in batch.items()})
        found.append(F.softmax(output.logits.float(), dim=-1).cpu())
    return torch.cat(found)


def in_order(batches: Batches, found: Tensor) -> Tensor:
    """What was found batch by batch, in the order of the data set's rows."""
    ordered = torch.empty_like(found)
    ordered[torch.as_tensor(batches.order)] = found
    return ordered
