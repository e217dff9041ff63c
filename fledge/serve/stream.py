"""Server-sent events by hand: frames, and the answer that sends them as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from starlette.types import Receive, Scope, Send

from fledge.serve.caller import CallerLeft, Present

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
PING_SECONDS = 15.0
SEND_SECONDS = 30.0

to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def frame(value: Any) -> bytes:
    """One event of one line. Neither JSON's escapes nor our text can break the framing: newlines are escaped."""
    return b"data: " + to_json(value).encode("utf-8") + b"\n\n"


class EventStream:
    """An ASGI answer that sends frames as they come, a comment when nothing comes, and stops when the caller leaves.
    Raises TimeoutError for a caller who does not read: a slot of the engine waits for them.

    `first` is a frame that was fetched already, to see that there would be one. One timer looks after the whole
    stream, so that a frame costs none of its own."""

    def __init__(self, first: bytes, frames: AsyncGenerator[bytes, None], headers: Iterable[tuple[str, str]] = ()):
        self.first = first
        self.frames = frames
        self.ended = False
        self.sending_since: float | None = None
        self.pinging: asyncio.Task[None] | None = None
        fixed = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            ("x-accel-buffering", "no"),  # nginx would otherwise hold the stream back
        ]
        self.headers = [(name.encode(), value.encode()) for name, value in (*fixed, *headers)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.loop, self.send, self.present = asyncio.get_running_loop(), send, Present(receive)
        self.sent_at = self.loop.time()
        self.look()
        try:
            async with self.present:
                await self.send_all()
        except CallerLeft:
            pass
        finally:
            self.timer.cancel()
            if self.pinging is not None:
                self.pinging.cancel()
            await self.frames.aclose()

    async def send_all(self) -> None:
        await self.send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await self.send_body(self.first)
        async for data in self.frames:
            await self.send_body(data)
        self.ended = True
        await self.send_body(b"", more=False)

    async def send_body(self, data: bytes, more: bool = True) -> None:
        self.sending_since = self.loop.time()
        await self.send({"type": "http.response.body", "body": data, "more_body": more})
        self.sending_since, self.sent_at = None, self.loop.time()

    def look(self) -> None:
        """Give up a caller who does not read, bridge silence; and look again when either may be due."""
        now, since = self.loop.time(), self.sending_since
        if since is not None and now >= since + SEND_SECONDS:
            self.present.interrupt(TimeoutError(f"stream: expected the caller to read within {SEND_SECONDS:g} s"))
            return
        if since is None and now >= self.sent_at + PING_SECONDS:
            self.sent_at = now
            self.pinging = asyncio.create_task(self.ping())
        due = self.sent_at + PING_SECONDS if since is None else since + SEND_SECONDS
        self.timer = self.loop.call_at(min(due, now + SEND_SECONDS), self.look)

    async def ping(self) -> None:
        if not self.ended:
            await self.send_body(PING)
