"""The fidelity experiment: its statistics, its subnets, and that it goes on where it was."""

from __future__ import annotations

import fidelity
import fidelity_report
import fidelity_subnets
import numpy as np
import pytest
from scipy.stats import kendalltau

from glora_search.space.schema import SearchSpace

TRUTH = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9])
SIZES = np.array([10.0, 12.0, 100.0, 140.0, 1000.0, 2000.0])


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys(seed):
    first, second = np.random.default_rng(seed).integers(6, size=(2, 20))
    assert fidelity_report.tau_b(first, second) == pytest.approx(kendalltau(first, second).statistic)


def test_scores_in_the_order_of_the_truth_are_perfect():
    facts = fidelity_report.compare(TRUTH, TRUTH**2, 1 - TRUTH, SIZES)
    assert facts["tau"] == facts["spearman"] == facts["tau_top_half"] == facts["tau_by_loss"] == 1
    assert facts["tau_low"] == facts["tau_high"] == 1
    assert facts["regret"] == 0


def test_one_swapped_pair_of_fifteen_costs_two_fifteenths():
    scores = TRUTH[[0, 1, 2, 3, 5, 4]]
    facts = fidelity_report.compare(TRUTH, scores, 1 - scores, SIZES)
    assert facts["tau"] == pytest.approx(13 / 15, abs=1e-3)
    assert facts["tau_top_half"] == pytest.approx(1 / 3, abs=1e-3)
    assert facts["regret"] == pytest.approx(0.05)
    assert facts["tau_low"] < facts["tau"] <= facts["tau_high"]


def test_only_pairs_of_about_one_size_count_for_what_size_does_not_tell():
    assert fidelity_report.tau_of_size(TRUTH, TRUTH, SIZES) == 1
    scores = TRUTH[[1, 0, 2, 3, 5, 4]]  # of the two pairs of one size, the first one is swapped
    assert fidelity_report.tau_of_size(TRUTH, scores, SIZES) == 0
    assert fidelity_report.tau_of_size(TRUTH, np.ones(6), SIZES) == 0
    assert np.isnan(fidelity_report.tau_of_size(TRUTH, TRUTH, 10.0 ** np.arange(6)))


def test_between_equal_scores_the_lower_loss_is_chosen():
    facts = fidelity_report.compare(
        TRUTH, np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.5]), np.array([1, 1, 1, 1, 0.2, 0.3]), SIZES
    )
    assert facts["regret"] == pytest.approx(0.05)


def rows(seed, accuracies, epochs="8"):
    settings = {"dataset": "x", "seed": seed, "epochs": epochs, "batch": "16", "learning_rate": "1", "lr_factors": ""}
    return [{**settings, "subnet": f"s{i}", "accuracy": str(value)} for i, value in enumerate(accuracies)]


def test_the_truth_is_that_of_the_settings_with_the_most_trainings():
    alone = [*rows("0", TRUTH), *rows("1", TRUTH), *rows("0", TRUTH / 2, epochs="1")]
    truths = fidelity_report.alone_scores(alone, "x")
    assert truths["s5"] == {"0": 0.9, "1": 0.9}
    sizes = {f"s{i}": size for i, size in enumerate(SIZES)}
    (facts,) = fidelity_report.ceiling("x", truths, sizes)
    assert facts["tau"] == 1
    assert fidelity_report.ceiling("x", fidelity_report.alone_scores(rows("0", TRUTH), "x"), sizes) == []


def test_a_training_that_is_in_the_file_is_not_done_again_and_other_settings_are(tmp_path):
    path = tmp_path / "new" / "a.csv"
    done = {"key": "a", "seed": 0, "learning_rate": 0.002, "lr_factors": fidelity.factors_text({"head": 5.0, "A": 1})}
    assert done["lr_factors"] == "A=1 head=5"
    assert not fidelity.is_done(path, done)
    fidelity.append_rows(path, [{**done, "accuracy": 0.5}])
    assert fidelity.is_done(path, done)
    assert not fidelity.is_done(path, {**done, "learning_rate": 0.001})
    fidelity.append_rows(path, [{**done, "seed": 1, "accuracy": 0.5}])
    assert len(fidelity_report.read_rows(path)) == 2


def test_the_measured_subnets_are_24_over_the_range_and_always_the_same(bind, monkeypatch):
    monkeypatch.setattr(fidelity_subnets, "SMALLEST", 100)  # the model is tiny
    space = bind(SearchSpace.load(fidelity_subnets.SPACE))
    subnets = fidelity_subnets.measured_subnets(space)
    again = fidelity_subnets.measured_subnets(space)
    assert subnets == again
    assert len(subnets) == len({fidelity_subnets.key_of(space, genome) for genome in subnets.values()}) == 24
    for genome in subnets.values():
        space.check(genome)


def test_a_structured_subnet_takes_the_same_paths_in_every_block(bind):
    space = bind("glora-paper")
    genome = fidelity_subnets.structured(space, np.random.default_rng(0))
    for gene in space.genes:
        if ".layer.0." in gene.name:
            assert genome[gene.name] == genome[gene.name.replace(".layer.0.", ".layer.1.")]
