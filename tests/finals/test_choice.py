"""Who wins: a searched subnet has to be ahead by more than the standard error of its lead."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from glora_search.finals.choice import choose, group_losses, paired_difference
from glora_search.finals.contest import Contest, Outcome
from glora_search.finals.finalists import Finalist
from glora_search.finals.race import Result
from glora_search.finals.rungs import Standing
from glora_search.recipe.schema import Finals
from glora_search.scoring import RowMetric
from glora_search.training.uniform import Uniform

LORA = Uniform("LoRA", 10, lambda *given: None, {}, True)
SUBNET, RIVAL, OTHER = (Finalist("subnet 1", {}, 10), Finalist("LoRA", LORA, 10), Finalist("LoRA", LORA, 10, rate=2.0))
ROWS = 640


class Losses(torch.nn.Module):
    """A model whose loss of a row stands in a column of the row."""

    def __init__(self, column):
        super().__init__()
        self.column, self.weight = column, torch.nn.Parameter(torch.zeros(1))

    def forward(self, labels, **columns):
        return SimpleNamespace(loss=columns[self.column].mean(), logits=torch.zeros(len(labels), 2))


class Decided(Contest):
    """A contest whose races are over; `best` and `load` give models of `Losses`."""

    def best(self, one, result):
        return one.slug

    def __init__(self, rows, margin):
        self.validation, self.settings, self.batch_size = rows, Finals(margin=margin), 64
        self.scoring, self.load = RowMetric(lambda logits, labels: labels), Losses


def rows(lead, *, spread, seed=0):
    """Rows on which a subnet leads by so much on the mean, and by more or less on single ones."""
    rng = np.random.default_rng(seed)
    own, apart = rng.uniform(1, 2, ROWS), rng.normal(0, spread, ROWS)
    others = own + lead + apart - apart.mean()
    return Dataset.from_dict({"labels": [0] * ROWS, "subnet-1": own, "lora": others, "lora-x2": others + 1})


def ended(*last, losses=(0.1, 0.2, 0.3)):
    named = dict(zip((SUBNET.name, RIVAL.name, OTHER.name), losses, strict=True))
    standings = {name: Standing(16, loss, 0.5, 16, {16: loss}) for name, loss in named.items()}
    return Outcome(Result(standings, list(last), [SUBNET, RIVAL, OTHER]), last[0], "LoRA", None)


@pytest.mark.parametrize("count", [2, 7, 40])
def test_the_difference_of_means_has_the_standard_error_of_paired_batches(count):
    rng = np.random.default_rng(count)
    items = np.full(count, 5.0)
    first, second = rng.normal(size=(2, count))
    difference, error = paired_difference(first, second, items)
    means = (first - second) / 5
    assert difference == pytest.approx(means.mean())
    assert error == pytest.approx(means.std(ddof=1) / math.sqrt(count))


def test_batches_count_by_their_items():
    difference, error = paired_difference(np.array([6.0, 1.0]), np.array([0.0, 0.0]), np.array([3.0, 1.0]))
    assert difference == 7 / 4
    assert error == pytest.approx(math.sqrt(2 * ((6 - 21 / 4) ** 2 + (1 - 7 / 4) ** 2)) / 4)


def test_a_single_batch_has_no_standard_error():
    assert paired_difference(np.array([2.0]), np.array([1.0]), np.array([2.0])) == (0.5, math.inf)


@pytest.mark.parametrize(("count", "groups"), [(ROWS, 32), (65, 33), (20, 20), (1, 1)])
def test_the_losses_of_groups_are_sums_over_their_rows(count, groups):
    found = rows(0.1, spread=0.1).select(range(count))
    sums, items = group_losses(Losses("lora"), found, Decided(found, 1.0))
    assert len(items) == groups
    assert items.sum() == count
    assert sums.sum() == pytest.approx(sum(found["lora"]), rel=1e-6)


def test_rows_sorted_by_what_their_losses_depend_on_have_the_error_of_single_rows():
    found = rows(0.0, spread=0.5)
    found = found.select(np.argsort(np.array(found["lora"]) - np.array(found["subnet-1"])))
    losses = [group_losses(Losses(name), found, Decided(found, 1.0)) for name in ("lora", "subnet-1")]
    _, error = paired_difference(losses[0][0], losses[1][0], losses[0][1])
    assert error == pytest.approx(0.5 / math.sqrt(ROWS), rel=0.4)  # over groups of neighbours it is 4 times that


@pytest.mark.parametrize("margin", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("certain", [True, False])
def test_a_subnet_wins_if_its_lead_is_above_the_margin(certain, margin):
    error = 0.5 / math.sqrt(ROWS)
    lead = error * margin * (2 if certain else 0.4)
    outcome = choose(Decided(rows(lead, spread=0.5), margin), ended("subnet 1", "LoRA", "LoRA x2"))
    assert outcome.winner == ("subnet 1" if certain else "LoRA")
    if not certain:
        assert outcome.passed_over["name"] == "subnet 1"
        assert outcome.passed_over["lead"] == pytest.approx(lead, rel=1e-3)
        assert outcome.passed_over["standard_error"] == pytest.approx(error, rel=0.4)
        assert [row["name"] for row in outcome.table()] == ["LoRA", "subnet 1", "LoRA x2"]


@pytest.mark.parametrize(
    ("last", "losses", "margin"),
    [
        (("subnet 1", "LoRA"), (0.1, 0.2, 0.3), 0.0),  # the lowest loss wins
        (("LoRA", "subnet 1"), (0.2, 0.1, 0.3), 1.0),  # no subnet leads
        (("subnet 1", "LoRA"), (0.1, math.inf, math.inf), 1.0),  # the methods have diverged
    ],
)
def test_the_lowest_loss_wins_otherwise(last, losses, margin):
    before = ended(*last, losses=losses)
    assert choose(Decided(rows(0.0, spread=0.5), margin), before) is before


def test_the_best_method_wins_even_if_it_was_dropped():
    outcome = choose(Decided(rows(0.0, spread=0.5), 1.0), ended("subnet 1", "LoRA x2", losses=(0.1, 0.2, 0.3)))
    assert outcome.winner == "LoRA"
