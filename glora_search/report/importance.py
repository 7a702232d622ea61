"""Which genes the score of the evaluated subnets depends on."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV

MIN_TRIALS = 50
HALVINGS = 5
PENALTIES = np.logspace(-1, 4, 11)


def gene_importance(genes: pd.DataFrame, scores: pd.Series) -> tuple[pd.DataFrame, float]:
    """How much of what the choices change in the score each gene changes.

    The score is fitted by a sum of one effect a choice (ridge regression). A gene counts by the variance of its
    effects with all its choices equally likely, so a gene that the search settled early is not lost. The variance is
    the covariance of the effects that two halves of the trials give: what is chance in them is not the same in both
    and cancels. Shares can be added up over a path or a layer; one that is chance is about 0, above or below.

    Args:
        genes: choices as text ``[trials, genes]``; a column is ``<layer>.<path>``.
        scores: one a trial, lower is better; the worst twentieth counts as the best of it, since a subnet that failed
            altogether would drown the rest.

    Returns:
        One row a gene that varies, ``layer``, ``path`` and ``share``, and how well the halves agree: the correlation
        of their effects, 0 where they have nothing in common. With fewer than ``MIN_TRIALS`` trials there are no rows.

    Source: functional ANOVA (Hutter et al., 2014) of an additive model.
    """
    genes = genes.loc[:, genes.nunique() > 1]
    if len(genes) < MIN_TRIALS or genes.empty:
        return pd.DataFrame(columns=["layer", "path", "share"]), 0.0
    table = pd.get_dummies(genes, prefix_sep="=", dtype=float).to_numpy()  # the choices of a gene stay together
    target = np.minimum(scores, np.quantile(scores, 0.95)).to_numpy()
    count = genes.nunique().to_numpy()
    owner = np.repeat(np.arange(len(count)), count)

    def effects(rows: np.ndarray) -> np.ndarray:
        fitted = RidgeCV(PENALTIES).fit(table[rows], target[rows]).coef_
        return fitted - (np.bincount(owner, fitted) / count)[owner]

    rng = np.random.default_rng(0)
    shared, total = np.zeros(len(count)), 0.0
    for _ in range(HALVINGS):
        first, second = (effects(half) for half in np.array_split(rng.permutation(len(target)), 2))
        shared += np.bincount(owner, first * second) / count
        total += float(
            np.sqrt((np.bincount(owner, first**2) / count).sum() * (np.bincount(owner, second**2) / count).sum())
        )
    agreement = float(shared.sum() / total) if total else 0.0
    names = pd.Series(genes.columns).str.rpartition(".")
    share = shared / shared.sum() if agreement > 0 else np.zeros(len(count))
    return pd.DataFrame({"layer": names[0], "path": names[2], "share": share}), agreement
