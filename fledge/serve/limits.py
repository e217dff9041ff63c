"""How much work is let in: a bound on answers in work or waiting, and an honest guess when to come back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from fledge.serve.errors import unavailable

MAX_RETRY_AFTER_SECONDS = 30
SMOOTHING = 0.2


class Admission:
    """Counts choices. More than `max_choices` are refused before they cost anything: 503 with `Retry-After`."""

    def __init__(self, max_choices: int):
        self.max_choices = max_choices
        self.in_work = 0
        self.usual_seconds = 1.0  # smoothed time that a request takes

    @contextmanager
    def room_for(self, n_choices: int) -> Iterator[None]:
        """Hold room for `n_choices` while the block runs. Raises ApiError 503 when there is none."""
        if self.in_work + n_choices > self.max_choices:
            raise unavailable("The server is full; try again shortly.", "overloaded", self.retry_after_seconds())
        self.in_work += n_choices
        try:
            yield
        finally:
            self.in_work -= n_choices

    def note(self, seconds: float) -> None:
        """A request took this long."""
        self.usual_seconds += SMOOTHING * (seconds - self.usual_seconds)

    def retry_after_seconds(self) -> int:
        return min(MAX_RETRY_AFTER_SECONDS, max(1, math.ceil(self.usual_seconds)))
