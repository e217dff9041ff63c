"""`Loop`: what the processes that run a model share. They take commands, work, and send counters now and then.

Imports no torch.
"""

from __future__ import annotations

import queue
import socket
import sys
import time
from abc import ABC, abstractmethod
from typing import Any

from fledge.engine import wire
from fledge.errors import EXIT_OK, FledgeError

COUNTERS_SECONDS = 0.25

Commands = queue.SimpleQueue  # put is safe in a signal handler


class Loop(ABC):
    """Takes commands and works in turn until told to stop, or until nobody listens. Subclasses say what work is."""

    def __init__(self, connection: socket.socket, commands: Commands[wire.Frame]):
        self.connection = connection
        self.commands = commands
        self.deadline: float | None = None  # monotonic seconds; set once a shutdown is under way
        self.pulse_seconds: float | None = None  # how often `pulse` is due where there is no work; None: never
        self.counted_at = 0.0
        self.counters_sent: dict[str, float] = {}

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the other end is told once: limits, sizes, the files."""

    @property
    @abstractmethod
    def has_work(self) -> bool:
        """Whether `work` would do something."""

    @abstractmethod
    def work(self) -> None:
        """One step, and what came out of it sent."""

    @abstractmethod
    def submit(self, frame: wire.Frame) -> None:
        """Take a request, or `refuse` it."""

    @abstractmethod
    def cancel(self, request_id: str) -> None:
        """Nobody waits for this request any more; it may be unknown."""

    @abstractmethod
    def counters(self) -> dict[str, float]:
        """The figures at this moment."""

    @abstractmethod
    def abort(self) -> None:
        """End what the deadline cut off, so that every reader gets a last word."""

    def pulse(self) -> None:
        """There has been no work and no command for `pulse_seconds`."""
        return

    def obey_other(self, frame: wire.Frame) -> None:
        """A command that only some loops know."""
        print(f"engine: unknown command {frame['kind']!r:.40}", file=sys.stderr)

    def run(self) -> int:
        """Until told to stop. Gives the exit code."""
        try:
            self.send({"kind": "ready", "facts": self.facts()})
            self.send_counters()
            while not self.finished():
                self.obey()
                if self.has_work:
                    self.work()
                if time.monotonic() - self.counted_at > COUNTERS_SECONDS or not self.has_work:
                    self.send_counters()
            self.abort()
            self.send_counters()
        except ConnectionError:
            pass  # the parent is gone
        return EXIT_OK

    def finished(self) -> bool:
        return self.deadline is not None and (not self.has_work or time.monotonic() >= self.deadline)

    def obey(self) -> None:
        """Take every command that is there; wait for one when there is nothing else to do."""
        while True:
            idle = not self.has_work and self.deadline is None
            try:
                frame = self.commands.get(idle, self.pulse_seconds)
            except queue.Empty:
                if idle:
                    self.pulse()
                return
            if frame["kind"] == "submit":
                self.submit(frame)
            elif frame["kind"] == "cancel":
                self.cancel(frame["id"])
            elif frame["kind"] == "shutdown":
                self.drain(frame["seconds"])
            else:
                self.obey_other(frame)

    def refuse(self, request_id: str, error: FledgeError) -> None:
        self.send({"kind": "refused", "id": request_id, "error": wire.error_to_plain(error)})

    def drain(self, seconds: float) -> None:
        """Take no more requests; the running ones have `seconds` left. A second call can only shorten that."""
        deadline = time.monotonic() + seconds
        self.deadline = deadline if self.deadline is None else min(self.deadline, deadline)
        self.send({"kind": "draining"})

    def send_counters(self) -> None:
        self.counted_at = time.monotonic()
        counters = self.counters()
        if counters != self.counters_sent:
            self.counters_sent = counters
            self.send({"kind": "counters", "counters": counters})

    def send(self, frame: wire.Frame) -> None:
        self.connection.sendall(wire.pack(frame))
