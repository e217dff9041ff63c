"""`Line`: the serving process's end of the line to the engine process, on an event loop. Imports no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fledge.engine import wire

TURN_BYTES = 1 << 16  # far below what a reader may be behind


class Line(asyncio.Protocol):
    """Hands every frame to `take` in the turn of the event loop in which it came. `ended` is done at the end of the
    line, with what `take` raised or what was wrong with a frame, if that was the end.

    Frames that lie in a row are taken together, so that what they tell is joined; after TURN_BYTES of them readers have
    their turn before the rest, and nothing more is read meanwhile.
    """

    def __init__(self, take: Callable[[wire.Frame], None]):
        self.take = take
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = bytearray()
        self.paused = self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.paused:
            self.take_turn()

    def take_turn(self) -> None:
        self.paused, n_bytes = False, 0
        try:
            while n_bytes < TURN_BYTES:
                if (body := self.next_body()) is None:
                    break
                n_bytes += len(body)
                self.take(wire.unpack(body))
            else:
                self.paused = True
        except Exception as error:
            self.end(error)
            return
        if self.paused:
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.take_turn)
        elif self.lost:
            self.end()
        else:
            self.transport.resume_reading()

    def next_body(self) -> bytes | None:
        """The next frame's bytes, if all of them are there. Raises EngineError for more than a frame has."""
        start = wire.HEADER.size
        if len(self.buffer) < start:
            return None
        end = start + wire.body_length(self.buffer[:start])
        if len(self.buffer) < end:
            return None
        body = bytes(self.buffer[start:end])
        del self.buffer[:end]
        return body

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if not self.paused:
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """Close, and say so."""
        self.transport.abort()
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    def send(self, frame: wire.Frame) -> None:
        """Raises EngineError for a frame that is too large."""
        self.transport.write(wire.pack(frame))

    def is_closing(self) -> bool:
        return bool(self.transport.is_closing())
