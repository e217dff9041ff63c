"""SIGTERM and SIGINT as a request to stop at the next step; the second one leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

CAUGHT = (signal.SIGTERM, signal.SIGINT)
NOTICE = "\n{}: saving at the end of this step; once more to leave at once\n"


class StopRequest:
    """While in a `with`: `asked` turns true at the first signal; the second ends the process with 128 + its number."""

    def __init__(self) -> None:
        self.asked = False
        self.name = ""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in CAUGHT:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked, self.name = True, signal.Signals(number).name
        try:
            os.write(2, NOTICE.format(self.name).encode())  # print could be interrupted in its own lock
        except OSError:
            pass  # standard error is gone; the request stands
