"""Trial 60: a caller who does not read holds nothing for long. The real protocol and streams, deadlines shortened."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from fledge.serve import front, stream
from tests.serve.raw import connect, parse, read_all, request
from tests.serve.running import serving, wait_until


async def flood(scope: Any, receive: Any, send: Any) -> None:
    """A stream without end."""

    async def frames() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x" * (1 << 16)

    await stream.EventStream(b"first", frames())(scope, receive, send)


async def large(scope: Any, receive: Any, send: Any) -> None:
    """One answer that no kernel's buffers hold."""
    body = b"x" * (32 << 20)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("app", [flood, large])
def test_60_a_caller_who_never_reads_keeps_neither_socket_nor_buffer(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(front, "FLUSH_SECONDS", 0.3)
    with serving(app) as url, contextlib.ExitStack() as lines:
        before = open_files()
        for _ in range(4):
            line = lines.enter_context(socket.socket())
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            line.connect(("127.0.0.1", int(url.rpartition(":")[2])))
            line.sendall(request("/"))
        wait_until(lambda: open_files() == before + 8, 2)  # the control: both ends of each
        wait_until(lambda: open_files() == before + 4, 4)


def test_60_who_reads_slowly_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a connection that is closed on our side still gives what was written."""
    monkeypatch.setattr(front, "FLUSH_SECONDS", 5.0)
    with serving(large) as url, connect(url) as line:
        line.sendall(request("/"))
        time.sleep(0.3)
        assert len(parse(read_all(line))[2]) == 32 << 20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
