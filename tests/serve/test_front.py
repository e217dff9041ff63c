"""The protocol in front: deadlines, what is no HTTP, an answer to a caller who still sends. No engine behind it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fledge.serve import front
from fledge.serve.access import AccessLog
from tests.serve.raw import connect, exchange, parse, read_all, read_to, request
from tests.serve.running import serving


class Plain:
    """Answers 200 without reading the body, and counts what was refused before it."""

    def __init__(self) -> None:
        self.statuses: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def refused(self, request_id: str, status: int) -> None:
        assert request_id.startswith("req_")
        self.statuses.append(status)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Plain]]:
    monkeypatch.setattr(front, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(front, "UNREAD_BODY_SECONDS", 0.5)
    app = Plain()
    with serving(app) as url:
        yield url, app


def test_headers_that_drip_are_cut_off_by_the_clock_not_by_silence(site: tuple[str, Plain]) -> None:
    url, app = site
    began = time.monotonic()
    status, headers, _ = exchange(url, b"GET / HTTP/1.1\r\n", *[b"x: 1\r\n"] * 8, pause=0.1)
    assert status == 408
    assert headers["content-type"] == "application/json"
    assert 0.4 < time.monotonic() - began < 3
    assert app.statuses == [408]


def test_a_connection_without_a_word_is_closed(site: tuple[str, Plain]) -> None:
    with connect(site[0]) as line:
        began = time.monotonic()
        assert read_all(line) == b""
        assert 0.4 < time.monotonic() - began < 3


def test_the_second_request_of_a_connection_has_its_deadline_too(site: tuple[str, Plain]) -> None:
    with connect(site[0]) as line:
        line.sendall(request("/").replace(b"connection: close\r\n", b""))
        assert parse(read_to(line, b"\r\n\r\nok"))[0] == 200
        line.sendall(b"GET /again")
        began = time.monotonic()
        assert parse(read_all(line))[0] == 408
        assert time.monotonic() - began < 3


def test_a_slow_but_steady_head_within_the_deadline_is_fine(site: tuple[str, Plain]) -> None:
    """The control."""
    whole = request("/")
    assert exchange(site[0], whole[:10], whole[10:20], whole[20:], pause=0.05)[0] == 200


def test_an_answer_reaches_a_caller_who_goes_on_sending(site: tuple[str, Plain]) -> None:
    head = request("/", "POST", b"", content_length=str(8 << 20))
    for _ in range(3):
        began = time.monotonic()
        status, _, body = exchange(site[0], head, *[b"x" * (1 << 18)] * 32)
        assert (status, body) == (200, b"ok")
        assert time.monotonic() - began < 3


def test_a_body_that_comes_after_the_answer_does_not_cost_the_next_request(site: tuple[str, Plain]) -> None:
    first = request("/", "POST", b"x" * 1000).replace(b"connection: close\r\n", b"")
    with connect(site[0]) as line:
        for _ in range(3):
            line.sendall(first[:-1000])
            assert parse(read_to(line, b"\r\n\r\nok"))[0] == 200
            line.sendall(first[-1000:])
        time.sleep(0.6)
        line.sendall(request("/"))
        assert parse(read_all(line))[0] == 200


def test_a_body_that_never_comes_does_not_hold_the_connection(site: tuple[str, Plain]) -> None:
    head = request("/", "POST", b"", content_length="1000").replace(b"connection: close\r\n", b"")
    with connect(site[0]) as line:
        line.sendall(head)
        began = time.monotonic()
        assert parse(read_all(line))[0] == 200
        assert time.monotonic() - began < 3


def test_a_bad_chunk_after_the_answer_ends_the_connection_quietly(site: tuple[str, Plain]) -> None:
    head = request("/", "POST", transfer_encoding="chunked")
    assert exchange(site[0], head, b"zz\r\n", b"more", pause=0.02)[0] == 200


class Taken:
    """A transport that notes what it is given to write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


def test_what_is_written_in_one_turn_is_one_message_and_all_of_it_before_the_end() -> None:
    async def run() -> None:
        protocol: Any = SimpleNamespace(loop=asyncio.get_running_loop(), lingering=False, unread=lambda: False)
        inner: Any = Taken()
        transport = front.LingeringTransport(inner, protocol)
        for data in (b"head", b"", b"body"):
            transport.write(data)
        assert inner.writes == []
        await asyncio.sleep(0)
        transport.write(b"later")
        await asyncio.sleep(0)
        assert inner.writes == [b"headbody", b"later"]  # the control: another turn is another message
        transport.write(b"x" * (front.TOGETHER_BYTES + 1))  # nobody's memory is filled while no turn comes
        assert len(inner.writes) == 3
        transport.write(b"last")
        transport.close()
        assert inner.closed and inner.writes[3:] == [b"last"]
        await asyncio.sleep(0)
        assert len(inner.writes) == 4

    asyncio.run(run())


def test_the_access_log_is_one_clean_line_and_survives_a_closed_stream() -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise OSError

    AccessLog("json", stream=Closed()).answer(path="/")  # type: ignore[arg-type]
    lines: list[str] = []

    class Kept(Closed):
        def write(self, text: str) -> None:
            lines.append(text)

        def flush(self) -> None:
            pass

    log = AccessLog("plain", ("hunter2hunter2",), Kept())  # type: ignore[arg-type]
    log.answer(method="GET", path="/a\nb\x1b[31m\u202ehunter2hunter2" + "y" * 500, status=200, model="bearer abcdefgh")
    with contextlib.suppress(ValueError):
        raise ValueError("the prompt")
    log.failure("req_1", ValueError("the prompt"))
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)
    text = "".join(lines)
    assert "hunter2" not in text and "abcdefgh" not in text and "the prompt" not in text
    assert "ValueError" in text and len(lines[0]) < 400
