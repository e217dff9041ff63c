"""Whether a reward model is as sure as it is right: confidence against accuracy on pairs. P pairs. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bin:
    """Pairs whose confidence lies in low..high: their number, mean confidence and accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def reliability(margins_P: Sequence[float], n_bins: int) -> list[Bin]:
    """Bins of equal width over confidences 1/2..1 that hold any pairs. `margins_P`: reward of the chosen answer less
    that of the rejected one. The model's confidence is σ(|margin|); it is right where the margin is above 0, half right
    where it is 0. Source: Guo et al. 2017 (arXiv 1706.04599, §2), of pairs."""
    margins = np.asarray(margins_P, float)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1) / 2
    edges = np.linspace(0.5, 1.0, n_bins + 1)
    number = np.clip(np.digitize(confidence, edges) - 1, 0, n_bins - 1)
    found = []
    for i in range(n_bins):
        inside = number == i
        if inside.any():
            mean = float(confidence[inside].mean())
            found.append(
                Bin(edges[i].item(), edges[i + 1].item(), int(inside.sum()), mean, float(right[inside].mean()))
            )
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Σ n/N |accuracy - confidence|: expected calibration error (Guo et al. 2017, eq. 3), 0..1."""
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / total
