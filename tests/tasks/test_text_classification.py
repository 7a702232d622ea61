"""Text classification: texts, pairs and accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score


def test_pairs_are_tokenized_together_with_segments(task, make):
    rows = [{**row, "other": "big data"} for row in make.rows()]
    made = task("bert", "text-classification", rows, {"text_pair_column": "other"})
    first = made.train[0]
    assert sorted(set(first["token_type_ids"])) == [0, 1]
    assert made.tokenizer.decode(first["input_ids"]).endswith("[SEP] big data [SEP]")


def test_accuracy_of_tallies_is_accuracy(task, make):
    made = task("bert", "text-classification", make.rows())
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 2, generator=generator), torch.randint(0, 2, (9,), generator=generator)
    sums = made.tally(logits, labels).sum(0).numpy()
    assert made.score(sums) == pytest.approx(accuracy_score(labels, logits.argmax(-1)))
    share = max(np.bincount(made.validation["labels"])) / len(made.validation)
    assert made.best_constant(made.validation).metric == pytest.approx(share)
