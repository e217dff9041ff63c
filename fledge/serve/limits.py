"""How much work is let in: a bound on answers in work or waiting, and on how long one would have to wait."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fledge.serve.errors import unavailable

MAX_RETRY_AFTER_SECONDS = 30
SURE = 0.75  # of the time one may wait: answers that began together end together, and the guess is half of one wrong
REMEMBERED_ROUNDS = 8  # an answer's usual time is that of the last ones, as many as fill the slots so many times


class Place:
    """Room that is held for `n_choices` of one tenant until it is released, once."""

    def __init__(self, admission: Admission, tenant: str, n_choices: int):
        self.admission, self.tenant, self.n_choices = admission, tenant, n_choices
        change(admission.of_tenant, tenant, n_choices)

    def release(self) -> None:
        n_choices, self.n_choices = self.n_choices, 0
        change(self.admission.of_tenant, self.tenant, -n_choices)


class Pace:
    """How long a tenant's next answer would wait, from how many are in the engine and how fast they leave it.

    An answer holds a slot for (slots in use, summed over time) / (answers that ended) seconds: Little's law. Both sums
    fade, so that old answers count for little. In the beginning those at work, whose time is in one sum, count as half
    an end each in the other.
    """

    def __init__(self, n_slots: int, clock: Callable[[], float] = time.monotonic):
        self.n_slots = n_slots
        self.clock = clock
        self.of_tenant: Counter[str] = Counter()
        self.slot_seconds = self.n_ended = 0.0
        self.beginning = 1.0  # fades as the sums do
        self.counted_at = clock()

    def enter(self, tenant: str, n_choices: int) -> None:
        self.count()
        change(self.of_tenant, tenant, n_choices)

    def leave(self, tenant: str, n_choices: int, n_served: int) -> None:
        """So many of them leave, and `n_served` had a slot until now."""
        self.count()
        change(self.of_tenant, tenant, -n_choices)
        keep = (1 - 1 / (REMEMBERED_ROUNDS * self.n_slots)) ** n_served
        self.slot_seconds, self.n_ended = self.slot_seconds * keep, (self.n_ended + n_served) * keep
        self.beginning *= keep

    def count(self) -> None:
        now = self.clock()
        self.slot_seconds += self.n_at_work * (now - self.counted_at)
        self.counted_at = now

    @property
    def n_at_work(self) -> int:
        return min(self.n_slots, sum(self.of_tenant.values()))

    @property
    def answer_seconds(self) -> float:
        """Usual time that an answer holds a slot; 0 before any has ended."""
        n_ended = self.n_ended + self.beginning * self.n_at_work / 2
        return self.slot_seconds / n_ended if self.n_ended else 0.0

    def wait_seconds(self, tenant: str) -> float:
        """How long the tenant's next answer would wait for a slot. Slots are shared evenly, as far as they are wanted
        (fledge/engine/scheduler.py)."""
        self.count()
        wanted = self.of_tenant[tenant] + 1
        slots = fair_share(wanted, [n for name, n in self.of_tenant.items() if name != tenant], self.n_slots)
        return max(0.0, wanted - slots) * self.answer_seconds / slots


def fair_share(wanted: int, others: list[int], n_slots: int) -> float:
    """Of `n_slots` what falls to one who wants `wanted` beside `others`: nobody gets more than wanted, and who gets
    less gets as much as anybody (max-min fairness)."""
    left, n_callers = float(n_slots), len(others) + 1
    for other in sorted(others):
        if other >= left / n_callers:
            break
        left, n_callers = left - other, n_callers - 1
    return min(float(wanted), left / n_callers)


class Admission:
    """Counts choices. More than `max_choices`, or than `share` (half of them) of one tenant, are refused before they
    cost anything: 503 with `Retry-After`. So is one that might wait longer than `queue_seconds` (0: any time)."""

    def __init__(self, max_choices: int, queue_seconds: float = 0.0, n_slots: int = 1):
        self.max_choices = max_choices
        self.share = (max_choices + 1) // 2
        self.queue_seconds = queue_seconds
        self.of_tenant: Counter[str] = Counter()
        self.pace = Pace(n_slots)

    @property
    def in_work(self) -> int:
        return sum(self.of_tenant.values())

    @contextmanager
    def room_for(self, n_choices: int, tenant: str, close: bool = False) -> Iterator[Place]:
        """Hold room for `n_choices` while the block runs, or until the place is released. Raises ApiError 503 when
        there is none; `close` ends the connection with it."""
        wait = self.pace.wait_seconds(tenant)
        message = ""
        if self.in_work + n_choices > self.max_choices:
            message = "The server is full; try again shortly."
        elif self.of_tenant[tenant] + n_choices > self.share:
            message = f"One caller may have {self.share} answers in work here; try again when some have ended."
        elif self.queue_seconds and wait > SURE * self.queue_seconds:
            message = f"An answer would begin in some {math.ceil(wait)} s, which is too long to wait; try again then."
        if message:
            raise unavailable(message, "overloaded", retry_after_seconds(wait), close)
        place = Place(self, tenant, n_choices)
        try:
            yield place
        finally:
            place.release()


def change(counts: Counter[str], name: str, by: int) -> None:
    """Count so many more or fewer; names without any are forgotten."""
    counts[name] += by
    if not counts[name]:
        del counts[name]


def retry_after_seconds(wait_seconds: float) -> int:
    return min(MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(wait_seconds)))
