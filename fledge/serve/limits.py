"""How much work is let in: a bound on answers in work or waiting, and an honest guess when to come back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.serve.errors import unavailable

MAX_RETRY_AFTER_SECONDS = 30
SMOOTHING = 0.2


class Place:
    """Room that is held for `n_choices` of one tenant until it is released, once."""

    def __init__(self, admission: Admission, tenant: str, n_choices: int):
        self.admission, self.tenant, self.n_choices = admission, tenant, n_choices
        admission.change(tenant, n_choices)

    def release(self) -> None:
        n_choices, self.n_choices = self.n_choices, 0
        self.admission.change(self.tenant, -n_choices)


class Admission:
    """Counts choices. More than `max_choices`, or than `share` (half of them) of one tenant, are refused before they
    cost anything: 503 with `Retry-After`."""

    def __init__(self, max_choices: int):
        self.max_choices = max_choices
        self.share = (max_choices + 1) // 2
        self.in_work = 0
        self.of_tenant: Counter[str] = Counter()
        self.usual_seconds = 1.0  # smoothed time that a request takes

    @contextmanager
    def room_for(self, n_choices: int, tenant: str, close: bool = False) -> Iterator[Place]:
        """Hold room for `n_choices` while the block runs, or until the place is released. Raises ApiError 503 when
        there is none; `close` ends the connection with it."""
        if self.in_work + n_choices > self.max_choices:
            message = "The server is full; try again shortly."
            raise unavailable(message, "overloaded", self.retry_after_seconds(), close)
        if self.of_tenant[tenant] + n_choices > self.share:
            message = f"One caller may have {self.share} answers in work here; try again when some have ended."
            raise unavailable(message, "overloaded", self.retry_after_seconds(), close)
        place = Place(self, tenant, n_choices)
        try:
            yield place
        finally:
            place.release()

    def change(self, tenant: str, n_choices: int) -> None:
        self.in_work += n_choices
        self.of_tenant[tenant] += n_choices
        if not self.of_tenant[tenant]:
            del self.of_tenant[tenant]

    def note(self, seconds: float) -> None:
        """A request took this long."""
        self.usual_seconds += SMOOTHING * (seconds - self.usual_seconds)

    def retry_after_seconds(self) -> int:
        return min(MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(self.usual_seconds)))
