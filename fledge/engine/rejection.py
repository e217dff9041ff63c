"""Distributions over tokens, for guesses that are accepted by chance (speculative sampling). V vocabulary.

Source: Leviathan et al. 2022 (arXiv 2211.17192); Chen et al. 2023 (arXiv 2302.01318).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.engine.noise import gumbel


@dataclass(frozen=True)
class Odds:
    """Probabilities `p`, float64, of the tokens `ids`; all others have none."""

    ids: np.ndarray
    p: np.ndarray

    def draw(self, key: int) -> int:
        """A token, by the noise that `key` names."""
        with np.errstate(divide="ignore"):
            return int(self.ids[(np.log(self.p) + gumbel(key, self.ids)).argmax()])


def dense(odds: Odds, vocab_size: int) -> np.ndarray:
    """float64 [V]."""
    p = np.zeros(vocab_size)
    p[odds.ids] = odds.p
    return p


def residual(p: np.ndarray, q: np.ndarray) -> Odds:
    """max(0, p - q) over its sum, of [V] each: what is drawn when a guess drawn by `q` was not accepted."""
    rest = np.maximum(p - q, 0.0)
    total = rest.sum()
    rest = rest / total if total > 0 else p  # equal but for rounding: whatever is drawn, p draws it
    ids = np.flatnonzero(rest)
    return Odds(ids, rest[ids])
