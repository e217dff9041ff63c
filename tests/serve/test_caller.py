"""Who waits for an answer's parts is told that the caller has left, where it waits; nobody else is disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message

from fledge.serve.caller import CallerLeft, Present


def leaves_after(seconds: float) -> Callable[[], Awaitable[Message]]:
    async def receive() -> Message:
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"}

    return receive


def outcome(seconds: float, work: Callable[[Present], Awaitable[Any]]) -> Any:
    """What `work` gives or raises beside a caller who leaves after so many seconds; the task goes on unharmed."""

    async def run() -> Any:
        found: Any = None
        try:
            async with Present(leaves_after(seconds)) as present:
                found = await work(present)
        except Exception as error:
            found = error
        await asyncio.sleep(0.05)  # nothing is left over that would end this
        task = asyncio.current_task()
        assert task is not None and not task.cancelling()
        assert asyncio.all_tasks() == {task}
        return found

    return asyncio.run(run())


async def long(_: Present) -> str:
    await asyncio.sleep(1)
    return "done"


async def short(_: Present) -> str:
    return "done"


def test_who_leaves_ends_the_work_and_who_stays_gets_it() -> None:
    assert isinstance(outcome(0.02, long), CallerLeft)
    assert outcome(5, short) == "done"  # the control
    assert outcome(0, short) == "done"  # it never waited


def test_work_may_clean_up_at_its_own_pace_and_its_own_errors_pass() -> None:
    cleaned = []

    async def careful(_: Present) -> None:
        try:
            await asyncio.sleep(1)
        finally:
            await asyncio.sleep(0.02)
            cleaned.append(True)

    async def broken(_: Present) -> None:
        raise KeyError("own")

    assert isinstance(outcome(0.02, careful), CallerLeft) and cleaned == [True]
    assert isinstance(outcome(5, broken), KeyError)


def test_the_first_reason_counts_and_one_that_comes_too_late_does_nothing() -> None:
    async def twice(present: Present) -> None:
        asyncio.get_running_loop().call_soon(present.interrupt, TimeoutError("slow"))
        asyncio.get_running_loop().call_soon(present.interrupt, KeyError("later"))
        await asyncio.sleep(1)

    assert isinstance(outcome(5, twice), TimeoutError)

    async def after() -> None:
        async with Present(leaves_after(5)) as present:
            pass
        present.interrupt(TimeoutError())
        await asyncio.sleep(0.02)

    asyncio.run(after())


def test_a_task_that_is_cancelled_from_outside_stays_cancelled() -> None:
    async def run() -> None:
        async def work() -> None:
            async with Present(leaves_after(5)) as present:
                asyncio.get_running_loop().call_later(0.02, present.interrupt, CallerLeft())
                asyncio.get_running_loop().call_later(0.02, task.cancel)
                await asyncio.sleep(1)

        task = asyncio.create_task(work())
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())


def test_a_line_that_breaks_is_one_that_was_left() -> None:
    async def run() -> None:
        async def receive() -> Message:
            raise OSError("broken")

        with pytest.raises(CallerLeft):
            async with Present(receive):
                await asyncio.sleep(1)

    asyncio.run(run())
