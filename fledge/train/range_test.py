"""The learning-rate range test: the rate grows by one factor from step to step, and the loss tells where it learns.

Source: Smith 2015 (arXiv 1506.01186), §3.3, over a logarithmic axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledge.errors import DataError, NonFiniteError
from fledge.train.loop import Loop

DIVERGED = 1.05  # times the loss it began with: worse than nothing learnt
SAFETY = 10.0  # below the rate that diverges
MOST_OVERFLOWS = 64


@dataclass(frozen=True)
class Tried:
    """One step: its rate, its loss, and the mean of the losses until then, newer ones weighing more."""

    rate: float
    loss: float
    smoothed: float


@dataclass(frozen=True)
class Suggestion:
    """`steepest`: the rate at which the smoothed loss falls fastest; `diverged`: where it rose above its beginning
    (None: nowhere); `suggested`: steepest, but at most a tenth of diverged."""

    suggested: float
    steepest: float
    diverged: float | None


def rate_of(step: int, low: float, high: float, steps: int) -> float:
    """`low` at step 0, `high` at the last, equal factors between."""
    return low * (high / low) ** (step / max(1, steps - 1))


def range_test(loop: Loop, low: float, high: float, steps: int, smoothing: float) -> Iterator[Tried]:
    """Steps at growing rates, ending where the loss diverges. Moves the loop's weights."""
    loop.rate_at = lambda step: rate_of(step, low, high, steps)
    mean, first = 0.0, math.nan
    while loop.state.step < steps:
        rate = loop.rate_at(loop.state.step)
        try:
            figures = loop.one_step()
        except NonFiniteError:
            yield Tried(rate, math.nan, math.nan)
            return
        if figures is None:  # an overflow of float16, whose scale halves: bounded
            if loop.state.overflows > MOST_OVERFLOWS:
                return
            continue
        done = loop.state.step
        mean = smoothing * mean + (1 - smoothing) * figures["loss"]
        smoothed = mean / (1 - smoothing**done)  # without the pull of the 0 that it began with
        first = smoothed if done == 1 else first
        yield Tried(rate, figures["loss"], smoothed)
        if smoothed > DIVERGED * first:
            return


def suggestion(tried: Sequence[Tried]) -> Suggestion:
    """What a finished test says. Raises DataError if the loss fell nowhere."""
    known = [one for one in tried if math.isfinite(one.smoothed)]
    if len(known) < 3:
        raise DataError(f"range: expected at least three steps that learn, got {len(known)}; begin with a lower rate")
    last = tried[-1]
    over = not math.isfinite(last.smoothed) or last.smoothed > DIVERGED * known[0].smoothed
    near = max(1, len(known) // 20)  # steps to each side: a slope over two single steps is mostly noise
    slopes = [
        ((b.smoothed - a.smoothed) / (math.log(b.rate) - math.log(a.rate)), mid.rate)
        for a, mid, b in zip(known, known[near:], known[2 * near :], strict=False)
    ]
    slope, steepest = min(slopes)
    if slope >= 0:
        raise DataError("range: expected a loss that falls somewhere, got one that never does; begin with a lower rate")
    diverged = last.rate if over else None
    return Suggestion(min(steepest, diverged / SAFETY) if diverged else steepest, steepest, diverged)
