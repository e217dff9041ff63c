"""The rows of many requests that wait for a forward pass, and which of them go together. Imports no torch.

A pass takes the oldest row of the tenant whose turn it is, and beside it the waiting rows, anybody's, whose lengths are
nearest to its own, as many as fit: little padding, nobody waits for ever, no tenant's flood is before another's row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fledge.errors import CapacityError

LOOKED_AT = 512  # rows of a tenant, oldest first, among which company is sought
MOST_ROWS = 256  # of one pass


@dataclass(frozen=True)
class RowRequest:
    """Token ids of one request's texts. `queue_seconds`: how long it may wait for its first row's pass; 0: for ever.
    `kinds`: of each row the kinds of its tokens, none where all are alike. `top_k` above 0: as many tokens are wanted
    for each mask, in place of what the model gives otherwise."""

    id: str
    rows: tuple[tuple[int, ...], ...]
    tenant: str = ""
    queue_seconds: float = 0.0
    kinds: tuple[tuple[int, ...], ...] = ()
    top_k: int = 0

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> RowRequest:
        """From `vars(request)` that went through JSON."""
        return cls(**{**plain, **{name: tuple(map(tuple, plain[name])) for name in ("rows", "kinds")}})

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class WaitingRow:
    request_id: str
    number: int
    ids: tuple[int, ...]
    kinds: tuple[int, ...] = ()
    top_k: int = 0


class RowQueue:
    """Waiting rows. `batch_tokens`: of one pass, padding counted."""

    def __init__(self, batch_tokens: int, max_waiting_tokens: int, clock: Callable[[], float] = time.monotonic):
        self.batch_tokens, self.max_waiting_tokens, self.clock = batch_tokens, max_waiting_tokens, clock
        self.of_tenant: dict[str, deque[WaitingRow]] = {}  # in the order of their turns
        self.deadlines: dict[str, float] = {}  # of requests without a row that was taken
        self.n_tokens = 0

    @property
    def n_rows(self) -> int:
        return sum(map(len, self.of_tenant.values()))

    def add(self, request: RowRequest) -> None:
        """Let all rows of a request wait. Raises CapacityError when they are too many."""
        if self.n_tokens + request.n_tokens > self.max_waiting_tokens:
            raise CapacityError(
                f"engine: expected at most {self.max_waiting_tokens} tokens to wait, got "
                f"{self.n_tokens + request.n_tokens}; try again later"
            )
        waiting = self.of_tenant.setdefault(request.tenant, deque())
        kinds = request.kinds or ((),) * len(request.rows)
        for number, (ids, kind) in enumerate(zip(request.rows, kinds, strict=True)):
            waiting.append(WaitingRow(request.id, number, ids, kind, request.top_k))
        self.n_tokens += request.n_tokens
        if request.queue_seconds:
            self.deadlines[request.id] = self.clock() + request.queue_seconds

    def take(self) -> list[WaitingRow]:
        """The rows of the next pass; none when nothing waits."""
        if not self.of_tenant:
            return []
        tenant = next(iter(self.of_tenant))
        self.of_tenant[tenant] = self.of_tenant.pop(tenant)  # the turn goes to the others first
        first = self.of_tenant[tenant][0]
        company = [row for rows in self.of_tenant.values() for row in islice(rows, LOOKED_AT) if row is not first]
        company.sort(key=lambda row: abs(len(row.ids) - len(first.ids)))  # equal ones stay in their order
        taken, longest = [first], len(first.ids)
        for row in company:
            longest = max(longest, len(row.ids))
            if longest * (len(taken) + 1) > self.batch_tokens or len(taken) == MOST_ROWS:
                break
            taken.append(row)
        self.remove({(row.request_id, row.number) for row in taken})
        for row in taken:
            self.deadlines.pop(row.request_id, None)
        return taken

    def remove(self, places: set[tuple[str, int]]) -> None:
        """Forget the rows of these requests and numbers."""
        for tenant, rows in list(self.of_tenant.items()):
            left = deque(row for row in rows if (row.request_id, row.number) not in places)
            self.n_tokens -= sum(len(row.ids) for row in rows) - sum(len(row.ids) for row in left)
            if left:
                self.of_tenant[tenant] = left
            else:
                del self.of_tenant[tenant]

    def cancel(self, request_id: str) -> None:
        """Forget the rows of a request that wait still."""
        rows = [row for waiting in self.of_tenant.values() for row in waiting if row.request_id == request_id]
        self.remove({(row.request_id, row.number) for row in rows})
        self.deadlines.pop(request_id, None)

    def overdue(self) -> list[str]:
        """Forget requests that waited as long as they may and have no row in a pass yet; their ids."""
        now = self.clock()
        late = [request_id for request_id, deadline in self.deadlines.items() if now > deadline]
        for request_id in late:
            self.cancel(request_id)
        return late


def padded_tokens(rows: Sequence[WaitingRow]) -> int:
    """Tokens of a pass, padding counted."""
    return max((len(row.ids) for row in rows), default=0) * len(rows)
