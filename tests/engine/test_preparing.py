"""Constraints that wait to be compiled: one at a time, callers in turn, none that nobody waits for any more."""

from __future__ import annotations

import threading
import time

from fledge.engine.preparing import Preparations


class Slow:
    """Work that is done when it is let go on."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = threading.Semaphore(0)
        self.preparations = Preparations(self.work)

    def work(self, job: str) -> None:
        self.go.acquire()
        self.done.append(job)

    def wait_for(self, n: int) -> list[str]:
        until = time.monotonic() + 20
        while len(self.done) < n and time.monotonic() < until:
            time.sleep(0.002)
        return self.done


def begun(slow: Slow, request_id: str) -> None:
    until = time.monotonic() + 20
    while request_id not in slow.preparations.begun and time.monotonic() < until:
        time.sleep(0.002)


def test_callers_take_turns_and_only_one_thread_works() -> None:
    slow = Slow()
    before = threading.active_count()
    slow.preparations.add("a", "a0", "a0")
    begun(slow, "a0")
    for name in ("a1", "a2", "a3", "b1", "c1", "b2"):
        slow.preparations.add(name[0], name, name)
    assert threading.active_count() == before + 1
    for _ in range(7):
        slow.go.release()
    assert slow.wait_for(7) == ["a0", "a1", "b1", "c1", "a2", "b2", "a3"]


def test_what_is_taken_back_before_its_turn_is_never_done() -> None:
    slow = Slow()
    slow.preparations.add("a", "a0", "a0")
    begun(slow, "a0")
    for name in ("a1", "b1", "b2"):
        slow.preparations.add(name[0], name, name)
    assert set(slow.preparations) == {"a0", "a1", "b1", "b2"}
    slow.preparations.discard("a0")  # it is being done, and nobody waits for it
    slow.preparations.discard("b1")
    assert "a0" not in slow.preparations and "b1" not in slow.preparations and "b2" in slow.preparations
    for _ in range(3):
        slow.go.release()
    assert slow.wait_for(3) == ["a0", "a1", "b2"]
    slow.preparations.discard("unknown")
    slow.preparations.add("b", "b3", "b3")  # a caller whose jobs were all done comes again
    slow.go.release()
    assert slow.wait_for(4)[-1] == "b3"
