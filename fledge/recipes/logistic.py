"""Logistic regression on features, its strength chosen by cross-validation; by scikit-learn (the extra `probe`).

The regression sees each feature scaled to mean 0 and variance 1, by the rows it is fitted on; the scaling is then
multiplied into the weights, so that what comes out is a product on the features as they are, and nothing else.

N rows, D width, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fledge.errors import DataError
from fledge.recipes.embed_config import ProbeConfig

MOST_STEPS = 5000  # of the solver; it stops far earlier where features are scaled


@dataclass(frozen=True)
class Regression:
    """Logits are weight · state + bias: float64 [L, D] and [L]. `accuracies`: of each strength tried, over the folds.
    `n_trained`: numbers that were fitted; of two labels one row is enough."""

    weight_LD: np.ndarray
    bias_L: np.ndarray
    strength: float
    accuracies: dict[str, float]
    n_trained: int


def regression(features_ND: np.ndarray, targets_N: np.ndarray, n_labels: int, config: ProbeConfig) -> Regression:
    """The regression on all rows with the strength that is best by stratified cross-validation of them; of equal ones
    the strongest penalty. Source: scikit-learn's LogisticRegression (lbfgs). Raises DataError for too few rows."""
    counts = np.bincount(targets_N, minlength=n_labels)
    if n_labels < 2 or counts.min() < config.folds:
        raise DataError(
            f"{config.data.path}: expected at least two labels with {config.folds} rows each, one for a fold; got "
            f"{counts.tolist()}; add rows, or give fewer folds"
        )

    def pipeline(strength: float) -> Any:
        weights = "balanced" if config.class_weights == "balanced" else None
        model = LogisticRegression(C=strength, class_weight=weights, max_iter=MOST_STEPS)
        return make_pipeline(StandardScaler(), model)

    features = features_ND.astype(np.float64)
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    strengths = sorted(config.strengths)
    accuracies = {
        strength: float(np.mean(cross_val_score(pipeline(strength), features, targets_N, cv=folds, scoring="accuracy")))
        for strength in strengths
    }
    best = max(strengths, key=lambda strength: accuracies[strength])
    scaler, model = pipeline(best).fit(features, targets_N)
    weight = model.coef_ / scaler.scale_
    bias = model.intercept_ - weight @ scaler.mean_
    n_trained = model.coef_.size + model.intercept_.size
    if n_labels == 2:  # one row, whose sigmoid is the softmax of 0 and it
        weight, bias = np.stack([np.zeros_like(weight[0]), weight[0]]), np.array([0.0, bias[0]])
    return Regression(weight, bias, best, {f"{one:g}": value for one, value in accuracies.items()}, n_trained)
