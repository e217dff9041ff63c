"""How many of how many, with an interval that holds at 0 and at 1 too. Imports no torch."""

from __future__ import annotations

import math

from fledge.evals.score import Score

Z = 1.959964  # the normal distribution's 0.975 quantile: 95 % lie within


def share_score(count: int, n: int) -> Score | None:
    """count / n and Wilson's interval at 95 %; None of nothing. Raises ValueError unless 0 <= count <= n.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference."""
    if not 0 <= count <= n:
        raise ValueError(f"count: expected 0..{n}, got {count}")
    if n == 0:
        return None
    share, weight = count / n, 1 / (1 + Z**2 / n)
    middle = weight * (share + Z**2 / (2 * n))
    half = weight * Z * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Score(share, n, (max(0.0, middle - half), min(1.0, middle + half)))
