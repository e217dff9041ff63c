"""Server-sent events by hand, and the caller who leaves: every answer stops its work when the connection ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

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
        fixed = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx would otherwise hold the stream back
        ]
        self.headers = [(name.encode(), value.encode()) for name, value in (*fixed, *headers)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self.send_all(send))
        leaving = asyncio.create_task(wait_until_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self.frames.aclose()

    async def send_all(self, send: Send) -> None:
        async with asyncio.timeout(SEND_SECONDS):
            await send({"type": "http.response.start", "status": 200, "headers": self.headers})
            await send({"type": "http.response.body", "body": self.first, "more_body": True})
        following = asyncio.ensure_future(anext(self.frames, None))
        try:
            while True:
                await asyncio.wait({following}, timeout=PING_SECONDS)
                data = following.result() if following.done() else PING
                # A caller who reads too slowly holds a slot of the engine: let go after a while.
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": data or b"", "more_body": data is not None})
                if data is None:
                    return
                if following.done():
                    following = asyncio.ensure_future(anext(self.frames, None))
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


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
