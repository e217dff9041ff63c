"""Clients on an engine process, for tests: whatever happens, no child is left."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

import psutil

from fledge.engine.client import EngineClient
from fledge.engine.config import EngineConfig
from fledge.engine.request import Event, Request


def with_client(model: str, body: Callable[[EngineClient], Awaitable[None]], **config: int) -> None:
    """Run `body` with a ready client; whatever happens, no child is left."""

    async def run() -> None:
        client = EngineClient(model, EngineConfig(**config))
        await client.start()
        try:
            await client.wait_ready(60)
            await body(client)
        finally:
            await client.stop(0)
        assert client.process is not None and client.process.returncode is not None

    asyncio.run(asyncio.wait_for(run(), 90))
    assert zombies_of(os.getpid()) == []


def zombies_of(parent: int) -> list[int]:
    """Children that have ended and were not waited for."""
    return [
        child.pid for child in psutil.Process(parent).children(recursive=True) if child.status() == psutil.STATUS_ZOMBIE
    ]


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def read(client: EngineClient, one: Request) -> list[Event]:
    return [event async for event in client.submit(one)]


async def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until `condition()`; fails beyond the limit."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began
