"""Server-sent events by hand, and the caller who leaves: every answer stops its work when the connection ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

Result = TypeVar("Result")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
PING_SECONDS = 15.0
SEND_SECONDS = 30.0


class CallerLeft(Exception):
    """The connection ended before the answer did."""


def frame(value: Any) -> bytes:
    """One event of one line. Neither JSON's escapes nor our text can break the framing: newlines are escaped."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n\n"


class EventStream:
    """An ASGI answer that sends frames as they come, a comment when nothing comes, and stops when the caller leaves.

    `first` is a frame that was fetched already, to see that there would be one."""

    def __init__(self, first: bytes, frames: AsyncGenerator[bytes, None], headers: Iterable[tuple[str, str]] = ()):
        self.first = first
        self.frames = frames
        self.ended = False
        self.sent_at = time.monotonic()
        fixed = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx would otherwise hold the stream back
        ]
        self.headers = [(name.encode(), value.encode()) for name, value in (*fixed, *headers)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self.send_all(send))
        leaving = asyncio.create_task(wait_until_left(receive))
        bridging = asyncio.create_task(self.bridge_silence(send))
        try:
            await asyncio.wait({sending, leaving, bridging}, return_when=asyncio.FIRST_COMPLETED)
            for task in (sending, bridging):
                if task.done():
                    task.result()  # raises what it raised
        finally:
            for task in (sending, leaving, bridging):
                task.cancel()
            await asyncio.gather(sending, leaving, bridging, return_exceptions=True)
            await self.frames.aclose()

    async def send_all(self, send: Send) -> None:
        await self.send_one(send, {"type": "http.response.start", "status": 200, "headers": self.headers})
        await self.send_body(send, self.first)
        async for data in self.frames:
            await self.send_body(send, data)
        self.ended = True
        await self.send_body(send, b"", more=False)

    async def bridge_silence(self, send: Send) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if time.monotonic() - self.sent_at >= PING_SECONDS and not self.ended:
                await self.send_body(send, PING)

    async def send_body(self, send: Send, data: bytes, more: bool = True) -> None:
        await self.send_one(send, {"type": "http.response.body", "body": data, "more_body": more})
        self.sent_at = time.monotonic()

    async def send_one(self, send: Send, message: Message) -> None:
        """Raises TimeoutError for a caller who does not read: a slot of the engine waits for them."""
        async with asyncio.timeout(SEND_SECONDS):
            await send(message)


async def wait_until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the caller leaves first (then CallerLeft is raised)."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(wait_until_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise CallerLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
