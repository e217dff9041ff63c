"""An engine process that hangs without dying is ended and started again; a slow one is not."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from fledge.engine import client as client_module
from fledge.engine.client import EngineClient
from tests.engine.clients import read, until, with_client
from tests.engine.stub_engine import joined, request


@pytest.fixture
def hasty(monkeypatch) -> None:
    """Seconds of silence are counted in twentieths."""
    monkeypatch.setattr(client_module, "TICK_SECONDS", 0.05)


def test_a_process_that_hangs_is_ended_and_its_requests_get_an_error(hasty, capfd):
    async def body(client: EngineClient) -> None:
        await read(client, request("before"))
        first = client.facts["pid"]
        os.kill(first, signal.SIGSTOP)
        began = time.monotonic()
        events = await asyncio.wait_for(read(client, request("r")), 10)
        assert 0.9 < time.monotonic() - began < 5
        assert joined(events, "r")[2] == "error"
        await client.wait_ready(60)
        assert client.facts["pid"] != first and client.counters()["engine_restarts_total"] == 1
        assert joined(await read(client, request("after")), "after")[2] == "length"

    with_client("stub:", body, stall_seconds=1)
    assert "has said nothing for 1 s" in capfd.readouterr().err


def test_a_process_that_hangs_is_ended_when_its_readers_have_left_too(hasty):
    async def body(client: EngineClient) -> None:
        first = client.facts["pid"]
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(client, request("r")), 0.2)
        assert not client.pending
        await until(lambda: client.counters()["engine_restarts_total"] == 1, 5)

    with_client("stub:", body, stall_seconds=1)


@pytest.mark.parametrize("stall_seconds", [1, 0])
def test_a_process_that_is_slow_or_has_nothing_to_do_is_left_alone(hasty, stall_seconds):
    """The control: below the limit, or without one, or without work however long."""

    async def body(client: EngineClient) -> None:
        first = client.facts["pid"]
        if not stall_seconds:
            os.kill(first, signal.SIGSTOP)
            asyncio.get_running_loop().call_later(1.2, os.kill, first, signal.SIGCONT)
        events = await asyncio.wait_for(read(client, request("r", max_tokens=3, ignore_eos=True)), 10)
        assert joined(events, "r")[2] == "length"
        await asyncio.sleep(1.2)
        assert client.ready and client.facts["pid"] == first

    with_client("stub:delay_ms=300", body, stall_seconds=stall_seconds)
