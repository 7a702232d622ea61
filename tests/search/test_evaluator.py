"""Scoring a subnet: folded into the base model, in one go or in legs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorWithPadding

from glora_search import SupernetConfig
from glora_search.scoring import logits_of
from glora_search.search import SubnetEvaluator


class Task:
    """Accuracy over rows of token ids."""

    by_rows = False

    def __init__(self, tokenizer):
        self.collator = DataCollatorWithPadding(tokenizer)

    def tally(self, logits, labels):
        return torch.stack([logits.argmax(-1) == labels, torch.ones_like(labels, dtype=torch.bool)], dim=1)

    def score(self, sums):
        return float(sums[0] / sums[1])

    def also(self, sums):
        return {}


@pytest.fixture
def parts(make_model, bind, randomize, tiny_model):
    from transformers import AutoTokenizer

    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 20, size=rng.integers(3, 12)).tolist() for _ in range(50)]
    rows = {"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]}
    dataset = Dataset.from_dict({**rows, "labels": rng.integers(0, 3, size=50).tolist()})
    space = bind("glora-ranks")
    supernet = randomize(get_peft_model(make_model("bert"), SupernetConfig(space=space, task_type="SEQ_CLS")))
    return space, supernet, SubnetEvaluator(supernet, dataset, Task(AutoTokenizer.from_pretrained(tiny_model)), 4)


def test_a_subnet_scores_as_its_unfolded_forward_does(parts):
    space, supernet, evaluator = parts
    genome = space.sample(np.random.default_rng(1))
    found = evaluator(genome)
    supernet.activate(genome)
    with torch.no_grad():
        outputs = [(supernet.eval()(**batch), batch["labels"]) for batch in evaluator.batches]
    losses = [float(output.loss) * len(labels) for output, labels in outputs]
    hits = sum(int((output.logits.argmax(-1) == labels).sum()) for output, labels in outputs)
    assert found.loss == pytest.approx(sum(losses) / 50, abs=1e-5)
    assert found.metric == pytest.approx(hits / 50)
    assert found.share == 1


def test_a_subnet_scores_the_same_folded_and_unfolded(parts, weights):
    space, supernet, evaluator = parts
    unfolded = SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring, 4, fold=False)
    for seed in range(4):
        genome = space.sample(np.random.default_rng(seed))
        ours, theirs = evaluator(genome), unfolded(genome)
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5)
        assert ours.metric == theirs.metric
        assert [leg.share for leg in unfolded.legs(genome)][-1] == 1.0


def test_no_base_weight_is_copied_where_subnets_are_scored_unfolded(parts):
    space, supernet, evaluator = parts
    unfolded = SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring, 4, fold=False)
    with unfolded.calibrated(space.largest), supernet.scored(space.largest, unfolded.folds):
        assert not any(layer.merged for layer in supernet.layers().values())
    assert all(layer._spare is None for layer in supernet.layers().values())


@pytest.mark.parametrize(("free", "folds"), [(10**12, True), (1000, False)])
def test_subnets_are_folded_where_the_memory_is_there(parts, monkeypatch, free, folds):
    _, supernet, evaluator = parts
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring, 4).folds is folds
    assert SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring, 4, fold=not folds).folds is not folds


def test_the_legs_end_with_the_whole_evaluation_and_grow_over_random_rows(parts):
    space, _, evaluator = parts
    genome = space.sample(np.random.default_rng(1))
    legs = list(evaluator.legs(genome))
    assert [leg.share for leg in legs] == [6 / 50, 12 / 50, 25 / 50, 1.0]
    whole = evaluator(genome)
    assert legs[-1].loss == pytest.approx(whole.loss, abs=1e-5)
    assert legs[-1].metric == pytest.approx(whole.metric)


@pytest.mark.parametrize("leave_after", [1, 4])
def test_the_base_weights_are_the_same_bit_for_bit_wherever_the_legs_are_left(parts, weights, leave_after):
    space, supernet, evaluator = parts
    before = weights(supernet)
    legs = evaluator.legs(space.sample(np.random.default_rng(2)))
    for _ in range(leave_after):
        next(legs)
    legs.close()
    after = weights(supernet)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_nothing_is_recorded_for_autograd(parts):
    space, supernet, evaluator = parts
    seen = []
    supernet.base_model.model.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output))
    evaluator(space.largest)
    assert seen
    assert not any(output.requires_grad for output in seen)


def test_batches_are_of_similar_lengths_and_trimmed_to_their_longest_row(parts):
    _, _, evaluator = parts
    widths = [batch["input_ids"].shape[1] for batch in evaluator.batches]
    assert widths == sorted(widths)
    assert all(int(batch["attention_mask"].sum(1).max()) == batch["input_ids"].shape[1] for batch in evaluator.batches)
    assert sum(len(batch["labels"]) for batch in evaluator.batches) == 50


def test_each_row_is_collated_once_where_nothing_is_raced(parts, monkeypatch):
    space, supernet, evaluator = parts
    rows = []
    collate = evaluator.scoring.collator
    monkeypatch.setattr(evaluator.scoring, "collator", lambda batch: rows.extend(batch) or collate(batch))
    again = SubnetEvaluator(supernet, evaluator._dataset, evaluator.scoring, 4)
    again(space.largest)
    assert len(rows) == 50
    list(again.legs(space.largest))
    list(again.legs(space.largest))
    assert len(rows) == 100


@pytest.mark.parametrize(
    ("limit", "sizes"), [(1, [1]), (3, [1]), (11, [2, 1]), (12, [2, 2]), (17, [2, 3]), (18, [2, 4])]
)
def test_no_more_logits_are_kept_than_asked(parts, limit, sizes):
    _, supernet, evaluator = parts
    found = logits_of(supernet, evaluator.batches, limit=limit)
    assert [len(part) for part in found] == sizes
    assert found[0].shape[1] == 3
