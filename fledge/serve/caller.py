"""The caller who leaves: whoever answers is told by an exception, wherever the answer waits."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive


class CallerLeft(Exception):
    """The connection ended before the answer did."""


class Present:
    """`async with Present(receive):` runs the block in its own task and ends it by CallerLeft when the caller leaves,
    or by whatever `interrupt` is given. As asyncio.timeout with a connection for a clock: a block that nobody
    interrupts costs no turn of the event loop."""

    def __init__(self, receive: Receive):
        self.receive = receive
        self.reason: Exception | None = None
        self.over = False

    async def __aenter__(self) -> Present:
        task = asyncio.current_task()
        assert task is not None
        self.task, self.cancelling = task, task.cancelling()
        self.watching = asyncio.create_task(wait_until_left(self.receive))
        self.watching.add_done_callback(self.leave)
        return self

    def leave(self, watching: asyncio.Task[None]) -> None:
        if not watching.cancelled():
            watching.exception()  # a line that can't be read has nobody at its end
            self.interrupt(CallerLeft())

    def interrupt(self, reason: Exception) -> None:
        """End the block by `reason` where it waits; nothing once it has ended, or has been interrupted."""
        if not self.over and self.reason is None:
            self.reason = reason
            self.task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over = True
        self.watching.cancel()
        if self.reason is None:
            return
        ours = self.task.uncancel() <= self.cancelling  # else somebody else cancelled the task too
        if ours and kind is asyncio.CancelledError:
            raise self.reason from error


async def wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
