"""Spikes: a loss or a gradient norm far above those of the last steps, by statistics that a spike doesn't move.
Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Protocol

FEWEST = 16  # steps before anything is called a spike
SIGMA = 1.4826  # the median absolute deviation of a normal distribution is its deviation divided by this
LEAST_SPREAD = 0.02  # of the median: a loss that hardly moves has no spikes of a percent


class Recent(Protocol):
    """Where the last accepted steps are kept: a run's State."""

    recent_losses: list[float]
    recent_norms: list[float]


class Spikes:
    """Judges steps by the last `window` accepted ones. Its memory is the run's `state`, so that a run that goes on
    judges as one that was never stopped."""

    def __init__(self, state: Recent, window: int, threshold: float):
        self.state, self.window, self.threshold = state, window, threshold

    def found(self, loss: float, norm: float) -> str:
        """What of a step is a spike and how far up, in words; empty for none."""
        both = (("loss", loss, self.state.recent_losses), ("gradient norm", norm, self.state.recent_norms))
        parts = []
        for name, value, recent in both:
            if len(recent) < min(FEWEST, self.window):
                continue
            middle, height = median(recent), deviations(value, recent)
            if height > self.threshold:
                parts.append(f"{name} {value:.4g} is {height:.1f} deviations above the median {middle:.4g}")
        return ", ".join(parts)

    def take(self, loss: float, norm: float) -> None:
        """Remember a step that was accepted."""
        for value, recent in ((loss, self.state.recent_losses), (norm, self.state.recent_norms)):
            recent.append(value)
            del recent[: -self.window]


def deviations(value: float, recent: Sequence[float]) -> float:
    """How many robust standard deviations `value` is above the median of `recent`; negative below it."""
    middle = median(recent)
    spread = SIGMA * median(abs(one - middle) for one in recent)
    return (value - middle) / max(spread, LEAST_SPREAD * abs(middle), 1e-12)
