"""Where the wall time of a run goes: each moment belongs to one phase, so the phases add up to the whole.

A CPU computes while it is asked. A GPU is asked and goes on by itself, so its phases can be told apart only by waiting
for it at their ends: that is done in one of SAMPLED steps, and what the others took in those phases is divided by the
shares of the last one that was sampled.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

import torch

from fledge.train.record import PHASES, Phase

ON_DEVICE: tuple[Phase, ...] = ("forward", "backward", "optimizer", "communication")
SAMPLED = 20


class Clock:
    """`with clock("forward"):` charges the time to that phase; a phase inside of another interrupts it. What is in no
    phase is `other`."""

    def __init__(self, wait: Callable[[], None] | None = None, now: Callable[[], float] = time.monotonic):
        self.wait, self.now = wait, now
        self.spent: dict[Phase, float] = dict.fromkeys(PHASES, 0.0)
        self.running: list[Phase] = ["other"]
        self.entering: Phase = "other"
        self.waiting = False
        self.shares: dict[Phase, float] = {}
        self.before: dict[Phase, float] = dict(self.spent)  # as the step began
        self.since = now()

    def __call__(self, phase: Phase) -> Clock:
        self.entering = phase
        return self

    def __enter__(self) -> None:
        self.charge()
        self.running.append(self.entering)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.waiting and self.wait is not None and self.running[-1] in ON_DEVICE:
            self.wait()
        self.charge()
        self.running.pop()

    def charge(self) -> None:
        now = self.now()
        self.spent[self.running[-1]] += now - self.since
        self.since = now

    def begin_step(self, step: int) -> None:
        """Of a step: whether its phases are waited for."""
        self.before = dict(self.spent)
        self.waiting = self.wait is not None and (not self.shares or step % SAMPLED == 1)
        if self.waiting and self.wait is not None:
            self.wait()  # what an earlier step left to do is not this one's

    def end_step(self) -> None:
        """Divide what the device's phases took in this step, where they were not waited for."""
        if self.wait is None:
            return
        took = {phase: self.spent[phase] - self.before[phase] for phase in ON_DEVICE}
        whole = sum(took.values())
        if self.waiting:
            self.shares = {phase: seconds / whole for phase, seconds in took.items()} if whole else {}
        elif self.shares:
            for phase, share in self.shares.items():
                self.spent[phase] = self.before[phase] + share * whole
        self.waiting = False

    def taken(self) -> dict[str, float]:
        """Seconds by phase since it was last asked; phases that took no time are left out."""
        self.charge()
        found = {phase: round(seconds, 6) for phase, seconds in self.spent.items() if seconds > 0}
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.before = dict(self.spent)
        return found  # type: ignore[return-value]


def clock_of(device: torch.device) -> Clock:
    """The clock for what computes there."""
    if device.type == "cuda":
        return Clock(lambda: torch.cuda.synchronize(device))
    return Clock(torch.mps.synchronize) if device.type == "mps" else Clock()
