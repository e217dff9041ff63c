"""The buffer between the engine process and a reader."""

from __future__ import annotations

import asyncio

import pytest

from fledge.engine.pending import MAX_PENDING_BYTES, PendingEvents
from fledge.engine.request import Event, TokenLogprob
from fledge.errors import CapacityError


def test_a_fast_reader_gets_every_event_as_it_came():
    async def run() -> list[Event]:
        pending, got = PendingEvents("r", 1), []
        for i in range(3):
            pending.put(Event("r", 0, (i,), str(i), finish_reason="stop" if i == 2 else None))
            got += await pending.take()
        assert await pending.take() == []
        return got

    events = asyncio.run(run())
    assert [(e.token_ids, e.text, e.finish_reason) for e in events] == [
        ((0,), "0", None),
        ((1,), "1", None),
        ((2,), "2", "stop"),
    ]


def test_unread_events_of_a_choice_become_one_and_nothing_is_lost():
    async def run() -> list[Event]:
        pending = PendingEvents("r", 2)
        for i in range(1000):
            pending.put(Event("r", i % 2, (i,), chr(97 + i % 26), (TokenLogprob(i, -1.0),), prompt_logprobs=(None,)))
        pending.put(Event("r", 1, finish_reason="length"))
        return await pending.take()

    first, second = asyncio.run(run())
    assert first.token_ids == tuple(range(0, 1000, 2)) and second.token_ids == tuple(range(1, 1000, 2))
    assert second.text == "".join(chr(97 + i % 26) for i in range(1, 1000, 2))
    assert [one.token_id for one in first.logprobs] == list(first.token_ids)
    assert (first.finish_reason, second.finish_reason) == (None, "length")
    assert first.prompt_logprobs == (None,)


def test_a_waiting_reader_is_woken():
    async def run() -> list[Event]:
        pending = PendingEvents("r", 1)
        reader = asyncio.create_task(pending.take())
        await asyncio.sleep(0)
        assert not reader.done()
        pending.put(Event("r", 0, text="x"))
        return await asyncio.wait_for(reader, 1)

    assert asyncio.run(run())[0].text == "x"


def test_the_end_reaches_every_open_choice_and_no_finished_one():
    async def run() -> list[Event]:
        pending = PendingEvents("r", 3)
        pending.put(Event("r", 1, finish_reason="stop"))
        await pending.take()
        pending.end("gone")
        pending.put(Event("r", 0, text="too late"))
        return await pending.take()

    assert [(e.index, e.finish_reason, e.error, e.text) for e in asyncio.run(run())] == [
        (0, "error", "gone", ""),
        (2, "error", "gone", ""),
    ]


def test_a_refusal_is_raised():
    async def run() -> None:
        pending = PendingEvents("r", 1)
        pending.refuse(CapacityError("full"))
        await pending.take()

    with pytest.raises(CapacityError, match="full"):
        asyncio.run(run())


def test_every_kind_of_content_counts():
    """Bytes, not characters; and the prompt's figures, which may be the largest of all."""
    figure = TokenLogprob(1, -1.0, ((1, -1.0),) * 20)

    async def run(event: Event) -> bool:
        pending = PendingEvents("r", 1)
        assert not pending.unread and not pending.full
        pending.put(event)
        return pending.unread and pending.full

    n = MAX_PENDING_BYTES // 3
    assert asyncio.run(run(Event("r", 0, text="世" * (n + 1)))) and not asyncio.run(run(Event("r", 0, text="世" * n)))
    assert asyncio.run(run(Event("r", 0, prompt_logprobs=(None, *[figure] * 2000))))
    assert not asyncio.run(run(Event("r", 0, prompt_logprobs=(None, *[figure] * 1000))))


def test_a_megabyte_unread_is_full_and_reading_empties_it():
    async def run() -> None:
        pending = PendingEvents("r", 1)
        pending.put(Event("r", 0, text="x" * (MAX_PENDING_BYTES // 2)))
        assert not pending.full
        pending.put(Event("r", 0, text="x" * (MAX_PENDING_BYTES // 2 + 1)))
        assert pending.full
        await pending.take()
        assert not pending.full

    asyncio.run(run())
