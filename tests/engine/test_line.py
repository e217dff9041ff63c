"""The line on the event loop: every frame in its order, readers' turns between many, and how it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from fledge.engine import wire
from fledge.engine.line import TURN_BYTES, Line
from fledge.errors import EngineError


def through(data: bytes, take: Callable[[wire.Frame], None]) -> None:
    """What becomes of bytes that the other end writes before it closes. Raises what ended the line."""

    async def run() -> None:
        ours, theirs = socket.socketpair()
        writing = asyncio.create_task(asyncio.to_thread(write, theirs))
        _, line = await asyncio.get_running_loop().create_connection(lambda: Line(take), sock=ours)
        try:
            async with asyncio.timeout(5):
                await line.ended
        finally:
            assert line.is_closing()
            await writing

    def write(theirs: socket.socket) -> None:
        with theirs:
            try:
                theirs.sendall(data)
            except OSError:  # the other end had enough
                pass

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 1000, TURN_BYTES, 3 << 20])
def test_frames_arrive_whole_and_in_order(size: int) -> None:
    frames = [{"kind": str(number), "text": "x" * size} for number in range(9)]
    got: list[wire.Frame] = []
    through(b"".join(map(wire.pack, frames)), got.append)
    assert got == frames


@pytest.mark.parametrize("cut", [0, 3, 4, 8])
def test_a_line_that_ends_in_mid_frame_is_the_end(cut: int) -> None:
    got: list[wire.Frame] = []
    through(wire.pack({"kind": "a"}) + wire.pack({"kind": "b"})[:cut], got.append)
    assert got == [{"kind": "a"}]


def test_others_have_their_turn_between_many_frames_but_few_are_taken_together() -> None:
    turns: list[str] = []

    def take(frame: wire.Frame) -> None:
        turns.append(frame["kind"])
        asyncio.get_running_loop().call_soon(turns.append, "turn")

    through(wire.pack({"kind": "a"}) * 5, take)
    assert turns[:5] == ["a"] * 5
    turns.clear()
    through(wire.pack({"kind": "a", "text": "x" * TURN_BYTES}) * 5, take)
    assert turns == ["a", "turn"] * 5


@pytest.mark.parametrize("bad", [b"\x00\x00\x00\x02[]", b"\xff\xff\xff\xff", b"\x00\x00\x00\x01{"])
def test_bytes_that_are_no_frame_end_the_line_with_an_error(bad: bytes) -> None:
    got: list[wire.Frame] = []
    with pytest.raises(EngineError):
        through(wire.pack({"kind": "a"}) + bad + wire.pack({"kind": "b"}), got.append)
    assert got == [{"kind": "a"}]


def test_what_taking_raises_ends_the_line() -> None:
    def take(frame: wire.Frame) -> None:
        raise KeyError("kind")

    with pytest.raises(KeyError):
        through(wire.pack({"kind": "a"}) * 3, take)
