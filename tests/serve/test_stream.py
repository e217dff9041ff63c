"""Streams and generations with everything around them replaced: callers who leave or don't read, a broken engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from starlette.types import Message

from fledge.engine.request import Event, Request, Sampling
from fledge.errors import CapacityError, EngineError
from fledge.serve import stream as stream_module
from fledge.serve.errors import ApiError, unavailable
from fledge.serve.generation import Generation
from fledge.serve.stream import DONE, EventStream, frame


class Frames:
    """A source of frames that notes how it ended."""

    def __init__(self, *frames: bytes, pause: float = 0.0, then_wait: bool = False):
        self.frames, self.pause, self.then_wait = frames, pause, then_wait
        self.closed = False

    async def __call__(self) -> AsyncGenerator[bytes, None]:
        try:
            for data in self.frames:
                await asyncio.sleep(self.pause)
                yield data
            if self.then_wait:
                await asyncio.sleep(60)
        finally:
            self.closed = True


def answer(source: Frames, receive: Callable[[], Coroutine[Any, Any, Message]], send: Any = None) -> list[bytes]:
    """The bodies that an EventStream sends."""
    sent: list[bytes] = []

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.body":
            sent.append(message["body"])

    async def run() -> None:
        async with asyncio.timeout(5):
            await EventStream(b"first", source())({"type": "http"}, receive, send or collect)  # type: ignore[arg-type]

    asyncio.run(run())
    return sent


async def stays() -> Message:
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


async def leaves() -> Message:
    await asyncio.sleep(0.05)
    return {"type": "http.disconnect"}


def test_a_frame_is_one_line_whatever_it_holds() -> None:
    data = frame({"a": "x\ny\r\n\u2028\x00é"})
    assert data.startswith(b"data: {") and data.endswith(b"}\n\n")
    assert b"\n" not in data[:-2] and b"\r" not in data
    assert "é" in data.decode()


def test_every_frame_is_sent_and_the_source_closed() -> None:
    source = Frames(b"a", b"b", DONE)
    assert answer(source, stays) == [b"first", b"a", b"b", DONE, b""]
    assert source.closed


def test_a_caller_who_leaves_closes_the_source() -> None:
    source = Frames(b"a", then_wait=True)
    assert answer(source, leaves)[:2] == [b"first", b"a"]
    assert source.closed


def test_a_silent_source_is_bridged_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PING_SECONDS", 0.03)
    sent = answer(Frames(b"a", b"b", pause=0.1), stays)
    assert sent.count(b": ping\n\n") >= 4
    assert [data for data in sent if data != b": ping\n\n"] == [b"first", b"a", b"b", b""]


def test_a_caller_who_does_not_read_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "SEND_SECONDS", 0.1)

    async def stuck(message: Message) -> None:
        await asyncio.sleep(0 if message["type"] == "http.response.start" else 60)

    source = Frames(b"a", then_wait=True)
    with pytest.raises(TimeoutError):
        answer(source, stays, stuck)


class FakeEngine:
    """Gives the events it was told, then waits for ever; counts the iterators that were left."""

    def __init__(self, script: list[Event] | Exception):
        self.script = script
        self.left = 0

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        try:
            if isinstance(self.script, Exception):
                raise self.script
            for event in self.script:
                yield event
            await asyncio.sleep(60)
        finally:
            self.left += 1


def gather(engine: FakeEngine, n_requests: int = 1, during: Callable[[Generation], None] | None = None) -> list[str]:
    """The texts of a generation; the engine's iterators must all have been left at its end."""
    texts = []

    async def run() -> None:
        requests = [Request(str(i), (1,), Sampling(n=1)) for i in range(n_requests)]
        generation = Generation(engine, requests)
        try:
            async with asyncio.timeout(5):
                if during is not None:
                    asyncio.get_running_loop().call_later(0.05, during, generation)
                async for _, event in generation.events():
                    texts.append(event.text)
        finally:
            await generation.close()

    try:
        asyncio.run(run())
    finally:
        assert engine.left == n_requests
    return texts


def test_a_generation_ends_with_its_last_choice_and_leaves_the_engine() -> None:
    events = [Event("0", 0, (1,), "a"), Event("0", 0, (2,), "b", finish_reason="stop")]
    assert gather(FakeEngine(events)) == ["a", "b"]
    assert sorted(gather(FakeEngine(events), n_requests=3)) == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize(
    ("script", "raised"),
    [
        (CapacityError("full"), CapacityError),
        ([Event("0", 0, (), "a"), Event("0", 0, finish_reason="error", error="broken")], EngineError),
    ],
)
def test_what_goes_wrong_in_the_engine_is_raised(script: Any, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        gather(FakeEngine(script))


def test_abort_ends_a_generation_that_waits() -> None:
    with pytest.raises(ApiError, match="going down"):
        gather(FakeEngine([]), 2, lambda generation: generation.abort(unavailable("going down", "draining")))


class Breaking(FakeEngine):
    """Its iterators can't be left: the process is gone."""

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        try:
            while True:
                yield Event(request.id, 0, (1,), "x")
        finally:
            self.left += 1
            raise CapacityError("the process is not there")


def test_leaving_an_engine_that_is_gone_ends() -> None:
    """What is raised on the way out has no reader: waiting to hand it over would be for ever."""

    async def run() -> None:
        generation = Generation(Breaking([]), [Request(str(i), (1,), Sampling()) for i in range(3)])
        async with asyncio.timeout(2):
            await anext(generation.events())
            await generation.close()

    asyncio.run(run())
