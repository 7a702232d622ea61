"""Multi-label classification: F1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

LABELS = [["a"], ["a", "b"], [], ["c", "b"], ["a"]]


@pytest.fixture
def several(task, make):
    rows = [{**row, "label": LABELS[index % 5]} for index, row in enumerate(make.rows(40))]
    return task("bert", "multi-label", rows)


def test_micro_and_macro_f1_are_those_of_scikit_learn(several):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 3, generator=generator)
    truth = torch.randint(0, 2, (30, 3), generator=generator).float()
    logits[:, 2], truth[:, 2] = -1.0, 0.0  # neither given nor there
    sums = sum(several.tally(logits[part], truth[part]).sum(0) for part in (slice(0, 7), slice(7, 30))).numpy()
    given = logits.sigmoid() > 0.5
    assert several.score(sums) == pytest.approx(f1_score(truth, given, average="micro"))
    macro = f1_score(truth, given, average="macro", zero_division=0)
    assert several.also(sums) == pytest.approx({"macro_f1": macro})
    assert several.score(np.zeros(9)) == 0


def test_rows_have_an_answer_for_each_label(several):
    assert several.data.labels == ["a", "b", "c"]
    rows = {tuple(row) for row in several.train["labels"]}
    assert rows == {(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)}


def test_rows_of_which_none_has_several_labels_are_said(several, task, make):
    assert several.row_notes() == []
    rows = [{**row, "label": "a, b" if n % 2 else "a"} for n, row in enumerate(make.rows())]
    (note,) = task("bert", "multi-label", rows).row_notes()
    assert note == "no row of data.train has several labels; in text they are separated by |"


def test_the_best_constant_answer_is_the_best_of_all_sets_of_labels(several):
    truth = np.array(several.validation["labels"])
    sets = [np.array([n >> label & 1 for label in range(3)]) for n in range(8)]
    best = max(f1_score(truth, np.tile(chosen, (len(truth), 1)), average="micro", zero_division=0) for chosen in sets)
    assert several.best_constant(several.validation).metric == pytest.approx(best)


def test_pairs_of_texts_can_have_several_labels(task, make):
    rows = [{**row, "other": "big data", "label": "x|y" if n % 2 else "x"} for n, row in enumerate(make.rows())]
    made = task("bert", "multi-label", rows, {"text_pair_column": "other"})
    assert sorted(set(made.train[0]["token_type_ids"])) == [0, 1]
