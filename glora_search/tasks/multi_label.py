"""Multi-label classification: any number of labels for each text, or for each pair of texts, scored by F1."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from glora_search.tasks.labels import SEPARATOR
from glora_search.tasks.whole_texts import WholeTexts


class MultiLabel(WholeTexts):
    """Any number of labels for each text, also none; see `WholeTexts` for what it reads.

    The labels of a row are a list, or text with ``|`` between them. Each label has an output of its own, which learns
    by binary cross-entropy; a label is given where its probability is above one half. The metric is the F1 of all
    decisions (micro); the mean F1 of the labels (macro) is reported beside it.
    """

    metric = "micro_f1"
    example = "'Your text here', top_k=None"
    target = "labels"
    problem_type = "multi_label_classification"

    def row_notes(self, share: float = 0.0) -> list[str]:
        """See `Task`."""
        alone = all(len(names) < 2 for names in self.data.train[self.column("label_column")])
        said = [f"no row of data.train has several labels; in text they are separated by {SEPARATOR}"] if alone else []
        return [*super().row_notes(share), *said]

    def answers(self, rows: Dataset) -> list[list[float]]:
        """For each row, 1 for each label that it has and 0 for the others."""
        return [
            [float(label in names) for label in self.data.labels]
            for names in map(set, rows[self.column("label_column")])
        ]

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 3 * labels]``: for each label whether it is right, given, and there."""
        given, there = logits > 0, labels > 0.5
        return torch.cat([given & there, given, there], dim=1).long()

    def score(self, sums: np.ndarray) -> float:
        """Micro F1."""
        right, given, there = np.split(sums, 3)
        return float(_f1(right.sum(), given.sum() + there.sum()))

    def also(self, sums: np.ndarray) -> dict[str, float]:
        """Macro F1; a label that neither is given nor there counts as 0."""
        right, given, there = np.split(sums, 3)
        return {"macro_f1": float(np.mean(_f1(right, given + there)))}

    def constants(self, rows: Dataset) -> list[list[float]]:
        """The most frequent labels, as many as are best."""
        there = np.array(rows["labels"]).sum(0)
        places = (-there).argsort(kind="stable").argsort()
        return [np.where(places < given, 1.0, -1.0).tolist() for given in range(1, len(there) + 1)]


def _f1(right: np.ndarray, given_and_there: np.ndarray) -> np.ndarray:
    return 2 * right / np.maximum(given_and_there, 1)
