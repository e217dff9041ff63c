"""`Preparations`: constraints that wait to be compiled while the engine goes on, one at a time in a thread, callers in
turn. Imports no torch.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any


class Preparations:
    """Jobs by request, done one after the other: a caller's next one after one of every other caller who waits. A job
    that is taken back before it begins is never done."""

    def __init__(self, work: Callable[[Any], None]):
        self.work = work
        self.changed = threading.Condition()
        self.waiting: OrderedDict[str, OrderedDict[str, Any]] = OrderedDict()  # tenant -> request -> job
        self.begun: set[str] = set()  # what `work` has in hand, or was given and not taken from `ids` yet
        self.thread: threading.Thread | None = None

    def __contains__(self, request_id: str) -> bool:
        with self.changed:
            return request_id in self.begun or any(request_id in jobs for jobs in self.waiting.values())

    def __iter__(self) -> Iterator[str]:
        with self.changed:
            return iter([*self.begun, *(one for jobs in self.waiting.values() for one in jobs)])

    def add(self, tenant: str, request_id: str, job: Any) -> None:
        with self.changed:
            self.waiting.setdefault(tenant, OrderedDict())[request_id] = job
            if self.thread is None:
                self.thread = threading.Thread(target=self.run, daemon=True)
                self.thread.start()
            self.changed.notify()

    def discard(self, request_id: str) -> None:
        """The request is served, or nobody waits for it any more; it may be unknown."""
        with self.changed:
            self.begun.discard(request_id)
            for tenant, jobs in list(self.waiting.items()):
                if jobs.pop(request_id, None) is not None and not jobs:
                    del self.waiting[tenant]

    def run(self) -> None:
        """Thread: do every job that is still wanted when its turn comes."""
        while True:
            self.work(self.next())

    def next(self) -> Any:
        with self.changed:
            while not self.waiting:
                self.changed.wait()
            tenant, jobs = next(iter(self.waiting.items()))
            request_id, job = jobs.popitem(last=False)
            self.begun.add(request_id)
            del self.waiting[tenant]
            if jobs:
                self.waiting[tenant] = jobs  # behind the others
            return job
