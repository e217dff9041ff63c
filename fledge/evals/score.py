"""`Score`: a figure with the number of things it was taken over and an interval. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
METHOD = f"{LEVEL:.0%} percentile bootstrap over documents or questions, {RESAMPLES} resamples"


@dataclass(frozen=True)
class Score:
    """`value` over `n` documents or questions; `interval` (low, high) at 95 %, None when one is all there is."""

    value: float
    n: int
    interval: tuple[float, float] | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ratio_score(totals: Sequence[float], weights: Sequence[float], seed: int) -> Score:
    """Σ totals / Σ weights, for example bits over bytes, and its interval: documents are drawn again with replacement,
    total and weight together (Efron & Tibshirani 1993, ch. 13). Raises ValueError if the weights sum to nothing."""
    total, weight = np.asarray(totals, float), np.asarray(weights, float)
    n = len(total)
    if not n or weight.sum() <= 0:
        raise ValueError(f"weights: expected a sum above 0, got {weight.sum()} over {n}")
    value = float(total.sum() / weight.sum())
    if n == 1:
        return Score(value, 1, None)
    random = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        times = np.bincount(random.integers(0, n, n), minlength=n)
        ratios[i] = float(total @ times) / max(float(weight @ times), 1e-12)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Score(value, n, (float(low), float(high)))


def mean_score(values: Sequence[float], seed: int) -> Score:
    """Mean and interval."""
    return ratio_score(values, [1.0] * len(values), seed)


def change_score(after: Sequence[float], before: Sequence[float], weights: Sequence[float], seed: int) -> Score:
    """Σ(after - before) / Σ weights with its interval, pair by pair: below 0 is less of it after."""
    return ratio_score([a - b for a, b in zip(after, before, strict=True)], weights, seed)
