"""What happened to a run, by its log: checkpoints, resumes, batches left out, spikes, where its time went. No torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from fledge.train.plot import Mark, Point
from fledge.train.record import PHASES, RunRecord, number

WINDOW, LEAST, DEVIATIONS = 32, 16, 6.0
# how the log calls what a batch did, its mark, and the words for it
BATCHES = {
    "non_finite": ("skipped", "was not finite"),
    "overflow": ("skipped", "overflowed float16"),
    "spike": ("spike", "was a spike"),
}
Spent = dict[str, float]  # seconds by phase


def marks(run: RunRecord) -> tuple[Mark, ...]:
    """Every event of the run's time line, by step."""
    found = [Mark(step, "checkpoint", f"checkpoint at step {step:.0f}") for step in steps_of(run, "checkpoint")]
    found += [Mark(step, "resume", f"continued at step {step:.0f}") for step in steps_of(run, "resume")]
    for kind, (mark, what) in BATCHES.items():
        for event in run.of(kind):
            found.append(Mark(number(event.get("step")) or 0.0, mark, f"batch {event.get('batch', '?')} {what}"))
    for step, loss in spikes(run.series("step", "loss")):
        found.append(Mark(step, "spike", f"spike: loss {loss:.4g} at step {step:.0f}"))
    return tuple(sorted(found, key=lambda mark: mark.x))


def steps_of(run: RunRecord, kind: str) -> list[float]:
    return [step for event in run.of(kind) if (step := number(event.get("step"))) is not None]


def spikes(points: Sequence[Point]) -> list[Point]:
    """Losses far above those before: over the median of the last 32 by more than 6 robust standard deviations (1.4826 ·
    the median distance from it) and by a twentieth of it. Neighbours count once, by the highest."""
    found: list[Point] = []
    recent: list[float] = []
    last = -math.inf
    for at, (step, loss) in enumerate(points):
        if math.isfinite(loss):
            if len(recent) >= LEAST:
                middle = statistics.median(recent)
                spread = 1.4826 * statistics.median([abs(value - middle) for value in recent])
                if loss - middle > max(DEVIATIONS * spread, 0.05 * abs(middle)):
                    if at - last <= 1 and found:
                        found[-1] = max(found[-1], (step, loss), key=lambda point: point[1])
                    else:
                        found.append((step, loss))
                    last = at
            recent = [*recent[1 - WINDOW :], loss]
    return found


def time_by_step(run: RunRecord) -> list[tuple[float, Spent]]:
    """(step, seconds by phase) of every event that tells them; the closing event counts to the last step."""
    found: list[tuple[float, Spent]] = []
    last = 0.0
    for event in run.events:
        times = event.get("times")
        if isinstance(times, dict):
            known = number(event.get("step")) or number(event.get("steps"))
            last = known if known is not None and math.isfinite(known) else last
            spent = {phase: number(times.get(phase)) or 0.0 for phase in PHASES}
            found.append((last, {phase: s for phase, s in spent.items() if math.isfinite(s) and s > 0}))
    return found


def time_spent(run: RunRecord) -> Spent:
    """Seconds by phase over the whole run; empty for a log without them."""
    whole: Spent = {}
    for _, spent in time_by_step(run):
        for phase, seconds in spent.items():
            whole[phase] = whole.get(phase, 0.0) + seconds
    return {phase: whole[phase] for phase in PHASES if phase in whole}


def time_in_bins(run: RunRecord, most: int = 40) -> list[tuple[float, Spent]]:
    """(last step, seconds a step by phase) of at most so many equal runs of steps; starting up is left out."""
    by_step: dict[float, Spent] = {}
    first = next((step for step in (number(event.get("step")) for event in run.of("step")) if step is not None), None)
    for step, spent in time_by_step(run):
        mine = by_step.setdefault(step, {})
        for phase, seconds in spent.items():
            if not (phase == "other" and step == first):  # before the first step the machine's peak is measured
                mine[phase] = mine.get(phase, 0.0) + seconds
    steps = sorted(by_step)
    bins = []
    for number_of_bin in range(min(most, len(steps))):
        low, high = (k * len(steps) // min(most, len(steps)) for k in (number_of_bin, number_of_bin + 1))
        before = steps[low - 1] if low else (first or 1.0) - 1
        width = max(1.0, steps[high - 1] - before)
        total: Spent = {}
        for step in steps[low:high]:
            for phase, seconds in by_step[step].items():
                total[phase] = total.get(phase, 0.0) + seconds / width
        bins.append((steps[high - 1], total))
    return bins
