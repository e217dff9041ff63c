"""SIGTERM and SIGINT as a request to stop at the next step; the second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from fledge.log import silent

CAUGHT = (signal.SIGTERM, signal.SIGINT)
REPEAT_SECONDS = 5.0
"""A launcher such as torchrun passes on the signal that its processes got too: so soon it is the same one."""
NOTICE = "\n{}: saving at the end of this step; once more to leave at once\n"


OPEN: set[StopRequest] = set()
"""Those of this process that are in a `with` now, which `ask` reaches."""


def ask(name: str) -> None:
    """Have every run of this process stop at its next step, as the signal `name` would that came to another process."""
    for request in tuple(OPEN):
        request.ask(name)


class StopRequest:
    """While in a `with`: `asked` turns true at the first signal; the second ends the process with 128 + its number.
    `launched`: a launcher started this process; a signal that comes again at once is then no second one."""

    def __init__(self, launched: bool = False) -> None:
        self.asked, self.launched, self.when = False, launched, 0.0
        self.name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in CAUGHT:
                self._before[number] = signal.signal(number, self._on_signal)
        OPEN.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        OPEN.discard(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked and self.launched and time.monotonic() - self.when < REPEAT_SECONDS:
            return
        if self.asked:
            os._exit(128 + number)
        self.ask(signal.Signals(number).name)

    def ask(self, name: str) -> None:
        """Ask for the first time; again is nothing new."""
        if self.asked:
            return
        self.asked, self.name, self.when = True, name, time.monotonic()
        if silent():
            return
        try:
            os.write(2, NOTICE.format(self.name).encode())  # print could be interrupted in its own lock
        except OSError:
            pass  # standard error is gone; the request stands
