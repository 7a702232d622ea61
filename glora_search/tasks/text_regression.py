"""Text regression: a number for each text, or for each pair of texts, scored by the correlation of ranks."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from scipy.stats import rankdata
from torch import Tensor

from glora_search.tasks.models import head_labels
from glora_search.tasks.whole_texts import WholeTexts


class TextRegression(WholeTexts):
    """A number for each text; see `WholeTexts` for what it reads.

    The head has one output, named after ``label_column``, and learns by the mean squared error. The metric is
    Spearman's rank correlation; Pearson's correlation and the root mean squared error are reported beside it.
    """

    metric = "spearman"
    constant = "mean of all rows"
    by_rows = True
    target = "number"
    problem_type = "regression"

    @property
    def outputs(self) -> list[str]:
        """The name of the one output."""
        return [self.column("label_column")]

    def keeps_head(self) -> bool:
        """A head of one output is one of numbers, whatever its name."""
        return len(head_labels(self.config)) == 1

    def answers(self, rows: Dataset) -> list[float]:
        """The number of each row; whole ones too are floats, by which a loss knows them from classes."""
        return [float(value) for value in rows[self.column("label_column")]]

    def tally(self, logits: Tensor, labels: Tensor) -> Tensor:
        """``[rows, 2]``: what the model says, and what is true."""
        return torch.stack([logits.squeeze(-1).float(), labels.float()], dim=1)

    def score(self, sums: np.ndarray) -> float:
        """Spearman's correlation; 0 where all answers are the same.

        Args:
            sums: ``[rows, 2]``.
        """
        said, true = sums.T
        return correlation(rankdata(said), rankdata(true)) if np.isfinite(said).all() else float("nan")

    def also(self, sums: np.ndarray) -> dict[str, float]:
        """Pearson's correlation and the root mean squared error."""
        said, true = sums.T
        return {"pearson": correlation(said, true), "rmse": float(np.sqrt(np.mean((said - true) ** 2)))}

    def constants(self, rows: Dataset) -> list[list[float]]:
        """The mean, which says nothing of the order."""
        return [[float(np.mean(rows["labels"]))]]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of two columns ``[rows]``; 0 where one of them is constant."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("nan")
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
