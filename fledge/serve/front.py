"""The outermost door: uvicorn's HTTP/1.1 protocol with limits and deadlines on what arrives before a request is one.

uvicorn alone waits for ever for a slow sender of headers, answers malformed input in plain text, and closes a
connection with unread input so that the kernel resets it before the caller has read the answer (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle

from fledge.serve.errors import ApiError
from fledge.serve.ids import new_request_id

MAX_TARGET_BYTES = 8 << 10
MAX_HEADER_BYTES = 32 << 10
MAX_HEADERS = 100
HEADER_SECONDS = 10.0
LINGER_SECONDS = 1.0
FLUSH_SECONDS = 30.0  # for a caller to take the rest of an answer after its connection was closed on our side
UNREAD_BODY_SECONDS = 3.0
MAX_LINGER_BYTES = 64 << 20
TOGETHER_BYTES = 1 << 14


def check_size(target_bytes: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Raise ApiError 414 or 431 for a request line or headers over the limits."""
    if target_bytes > MAX_TARGET_BYTES:
        raise ApiError(414, f"The URL is longer than {MAX_TARGET_BYTES} bytes.", headers=[("connection", "close")])
    if len(headers) > MAX_HEADERS:
        raise ApiError(431, f"The request has more than {MAX_HEADERS} headers.", headers=[("connection", "close")])
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise ApiError(431, f"The headers exceed {MAX_HEADER_BYTES} bytes.", headers=[("connection", "close")])


class FrontProtocol(H11Protocol):
    """uvicorn's protocol; `config.app` may have `refused(request_id, status)`, called for each request refused here."""

    header_timer: asyncio.TimerHandle | None = None
    lingering = False
    discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self))  # type: ignore[arg-type]
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self.headers_late)

    def data_received(self, data: bytes) -> None:
        if self.lingering:
            self.discarded_bytes += len(data)
            if self.discarded_bytes > MAX_LINGER_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        self.watch_headers()

    def watch_headers(self) -> None:
        """Run the clock exactly while a request has begun to arrive and its headers are not complete."""
        if self.conn.their_state is not h11.IDLE:
            self.stop_timer()
        elif self.header_timer is None and self.conn.trailing_data[0]:
            self.header_timer = self.loop.call_later(HEADER_SECONDS, self.headers_late)

    def stop_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def headers_late(self) -> None:
        self.header_timer = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self.refuse(ApiError(408, f"The headers did not arrive within {HEADER_SECONDS:g} seconds."))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn for anything h11 can't parse; its own `msg` says less than the buffer does."""
        data = bytes(self.conn.trailing_data[0])
        if len(data) > MAX_HEADER_BYTES and b"\n" not in data[:MAX_TARGET_BYTES]:
            self.refuse(ApiError(414, f"The URL is longer than {MAX_TARGET_BYTES} bytes."))
        elif len(data) > MAX_HEADER_BYTES:
            self.refuse(ApiError(431, f"The headers exceed {MAX_HEADER_BYTES} bytes."))
        else:
            self.refuse(ApiError(400, "The request is not valid HTTP.", code="bad_request"))

    def refuse(self, error: ApiError) -> None:
        """Answer outside any request and close."""
        self.stop_timer()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # the application's own answer can't be sent any more
            cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        body, request_id = json.dumps(error.body()).encode(), new_request_id()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        answer = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.linger()
        refused = getattr(self.config.app, "refused", None)
        if refused is not None:
            refused(request_id, error.status)

    def unread(self) -> bool:
        """Is the caller still sending a request that has been answered?"""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def linger(self) -> None:
        """Close for writing, swallow what still comes for a moment, then close."""
        self.lingering = True
        transport: Any = self.transport
        transport.half_close()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, transport.close_now)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            # Answered before the body was read. It is swallowed, so that the next request of the connection is not
            # lost, but it may not hold the connection open for ever.
            self.loop.call_later(UNREAD_BODY_SECONDS, self.body_late, self.cycle)

    def body_late(self, cycle: RequestResponseCycle) -> None:
        if self.cycle is cycle and self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_timer()
        super().connection_lost(exc)


class LingeringTransport:
    """The connection's transport, whose `close` lingers when the caller is still sending, and whose `write` keeps what
    is written in one turn of the event loop together: a head and the first of its body, the last of it and the end, are
    one message to the kernel, which wakes the caller once."""

    def __init__(self, transport: asyncio.Transport, protocol: FrontProtocol):
        self.inner = transport
        self.protocol = protocol
        self.written: list[bytes] = []
        self.n_written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write(self, data: bytes) -> None:
        if not data:
            return
        if not self.written:
            self.protocol.loop.call_soon(self.flush)
        self.written.append(data)
        self.n_written += len(data)
        if self.n_written > TOGETHER_BYTES:  # who writes on and on has to learn when the kernel takes no more
            self.flush()

    def flush(self) -> None:
        if self.written:
            data, self.written, self.n_written = b"".join(self.written), [], 0
            self.inner.write(data)

    def is_closing(self) -> bool:
        return self.protocol.lingering or self.inner.is_closing()

    def close(self) -> None:
        if self.protocol.lingering or self.inner.is_closing():
            return
        if self.protocol.unread():
            self.protocol.linger()
        else:
            self.close_now()

    def half_close(self) -> None:
        self.flush()
        if self.inner.can_write_eof() and not self.inner.is_closing():
            self.inner.write_eof()

    def close_now(self) -> None:
        """Close once what was written is sent, which asyncio alone would await for ever."""
        self.flush()
        self.inner.close()
        if self.inner.get_write_buffer_size():
            self.protocol.loop.call_later(FLUSH_SECONDS, self.inner.abort)
