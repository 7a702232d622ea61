"""What taught finalists learn from: the train rows with what a teacher says of them, and what the teacher is worth.

The supernet's subnets are the first choice. Where the supernet was trained too little for that, the finalists that were
trained alone teach, by their mean prediction; of tokens nobody does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, load_from_disk
from torch import Tensor

from glora_search.files.folders import whole_folder
from glora_search.files.text import read_json, write_json
from glora_search.scoring import Batches, Scoring, outputs
from glora_search.training.answers import Answers
from glora_search.training.distillation import SOFT_CLASSES, with_unlabelled
from glora_search.training.teaching import MeanPrediction

POOR = 1.25
"""A finalist with so many times the validation loss of the best one does not teach, nor does a supernet of tokens.

Of tokens, 1.16 to 1.23 made students worse too (docs/language-models.md): this saves a part of the race's cost.
"""
POOR_SUPERNET = 1.4
"""The same for a supernet of classes or numbers: 1.36 taught well, 2.4 did harm (docs/race-history.md)."""


@dataclass(frozen=True)
class Lesson:
    """What a teacher has said.

    Attributes:
        rows: to learn from, see `with_soft_labels`.
        by: who teaches, ``supernet`` or ``finalists``.
        members: whose mean prediction it is, so many.
        validation, validation_loss: what the teacher itself is worth.
        unlabelled: of the rows, the last ones, which have no labels.
        further: the validation rows with what it says of them, where the teacher itself is not kept.
    """

    rows: Dataset
    by: str
    members: int
    validation: float
    validation_loss: float
    unlabelled: int = 0
    further: Dataset | None = None

    @classmethod
    def of(
        cls,
        teacher: MeanPrediction,
        by: str,
        members: int,
        train: Dataset,
        validation: Dataset,
        unlabelled: Dataset | None,
    ) -> Lesson:
        """Let a teacher label the train rows, and unlabelled ones."""
        worth, rows = teacher.evaluate(validation), teacher.teach(train)
        if unlabelled is not None:
            rows = with_unlabelled(rows, teacher.teach(unlabelled))
        return cls(rows, by, members, worth.metric, worth.loss, 0 if unlabelled is None else len(unlabelled))

    def facts(self) -> dict[str, Any]:
        """What a table says of it."""
        facts = {name: getattr(self, name) for name in ("by", "members", "validation", "validation_loss")}
        return {**facts, **({"unlabelled": self.unlabelled} if self.unlabelled else {})}

    @property
    def by_token(self) -> bool:
        """Whether rows have many items."""
        return SOFT_CLASSES in self.rows.column_names

    def poor(self, loss: float) -> bool:
        """Whether the supernet is far worse than a finalist with this validation loss, or has no loss at all."""
        return not self.validation_loss <= (POOR if self.by_token else POOR_SUPERNET) * loss

    def save(self, folder: Path) -> None:
        """Write it; the folder is there once it is whole."""
        with whole_folder(folder) as making:
            self.rows.save_to_disk(str(making / "rows"))
            if self.further is not None:
                self.further.save_to_disk(str(making / "further"))
            write_json(making / "teacher.json", self.facts())

    @classmethod
    def load(cls, folder: Path) -> Lesson:
        """What `save` has written."""
        facts = read_json(folder / "teacher.json")
        worth = {name: math.nan for name in ("validation", "validation_loss") if facts[name] is None}
        further = load_from_disk(str(folder / "further")) if (folder / "further").is_dir() else None
        return cls(load_from_disk(str(folder / "rows")), **{**facts, **worth}, further=further)


@dataclass
class Peers(MeanPrediction):
    """The mean of models, of which one is in memory at a time. Their items are rows, not tokens.

    Attributes:
        models: makes them anew, one after the other.
        scoring: of the task.
        batch_size: rows of a batch.
    """

    models: Callable[[], Iterable[Any]]
    scoring: Scoring
    batch_size: int = 64
    answers: Answers | None = field(default=None, init=False)

    @torch.inference_mode()
    def said(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
        """See `MeanPrediction`; each model sees all batches before the next one is made."""
        totals, members = [torch.zeros(())] * len(batches), 0
        for model in self.models():
            members += 1
            for number, (batch, output) in enumerate(outputs(model, batches)):
                totals[number] = totals[number] + self._read(model, output.logits, batch["labels"]).cpu()
            del model  # before the next one is made
        for total, batch in zip(totals, batches, strict=True):
            yield total / members, batch["labels"]
