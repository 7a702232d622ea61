"""Gene importance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from glora_search.report.importance import MIN_TRIALS, gene_importance

KINDS = ["lora", "vector", "none"]


@pytest.fixture
def genes():
    rng = np.random.default_rng(0)
    names = [f"layer.{layer}.{path}" for layer in range(10) for path in ("A_B", "C")]
    return pd.DataFrame({name: rng.choice(KINDS, 200) for name in names})


def test_the_genes_that_the_score_depends_on_have_the_shares(genes):
    scores = 2.0 * (genes["layer.3.A_B"] == "lora") + (genes["layer.7.C"] == "none")
    scores += 0.2 * np.random.default_rng(1).normal(size=len(genes))
    shares, agreement = gene_importance(genes, scores)
    found = shares.assign(gene=shares["layer"] + "." + shares["path"]).set_index("gene")["share"]
    assert found["layer.3.A_B"] == pytest.approx(0.8, abs=0.08)
    assert found["layer.7.C"] == pytest.approx(0.2, abs=0.08)
    assert found.drop(["layer.3.A_B", "layer.7.C"]).abs().max() < 0.02
    assert found.sum() == pytest.approx(1)
    assert agreement > 0.9


def test_chance_has_no_agreement(genes):
    agreements = [
        gene_importance(genes, pd.Series(np.random.default_rng(seed).normal(size=len(genes))))[1] for seed in range(5)
    ]
    assert abs(np.mean(agreements)) < 0.1


def test_a_collapsed_subnet_does_not_drown_the_rest(genes):
    scores = (genes["layer.3.A_B"] == "lora").astype(float)
    scores.iloc[:4] = 1000.0
    shares, _ = gene_importance(genes, scores)
    assert shares.loc[shares["share"].idxmax(), "layer"] == "layer.3"


def test_a_gene_that_never_varies_is_left_out(genes):
    genes["layer.0.C"] = "none"
    shares, _ = gene_importance(genes, (genes["layer.3.A_B"] == "lora").astype(float))
    assert len(shares) == genes.shape[1] - 1


def test_few_trials_tell_nothing(genes):
    few = genes.iloc[: MIN_TRIALS - 1]
    shares, agreement = gene_importance(few, pd.Series(range(len(few)), dtype=float))
    assert shares.empty
    assert agreement == 0
