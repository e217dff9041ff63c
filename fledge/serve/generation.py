"""One HTTP request's work in the engine: its prompts submitted, their events in one stream, all stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import Protocol, cast

from fledge.engine.request import Event, Request
from fledge.errors import CapacityError, EngineError
from fledge.serve.errors import ApiError


class Submits(Protocol):
    """The face of the engine's client that a generation uses: leaving the iterator cancels the request."""

    def submit(self, request: Request) -> AsyncIterator[Event]: ...


class Work(Protocol):
    """One HTTP request's work, as the service sees it: a generation, or rows to encode (fledge/serve/encoding.py)."""

    accepted: bool  # the engine took it, and reads its prompt
    generated_tokens: int

    def abort(self, error: ApiError) -> None: ...


class Generation:
    """The events of several requests (one per prompt) as pairs (prompt number, event), in order of arrival."""

    def __init__(self, engine: Submits, requests: list[Request]):
        self.engine = engine
        self.requests = requests
        # One place: a caller who reads slowly holds up the followers, and the client joins the events that pile up.
        self.queue: asyncio.Queue[tuple[int, Event] | Exception] = asyncio.Queue(maxsize=1)
        self.n_open = sum(request.sampling.n for request in requests)
        self.generated_tokens = 0
        self.begun = asyncio.Event()
        self.accepted = False
        self.closing = False
        self.tasks = [asyncio.create_task(self.follow(number, r)) for number, r in enumerate(requests)]

    async def follow(self, number: int, request: Request) -> None:
        item: tuple[int, Event] | Exception
        try:
            async with aclosing(cast(AsyncGenerator[Event, None], self.engine.submit(request))) as events:
                async for event in events:
                    item = (number, event)
                    await self.put(item)
        except Exception as error:  # carried to the reader, who is in another task
            if not self.closing:  # nobody would take it, and `close` waits for this task
                await self.put(error)

    async def put(self, item: tuple[int, Event] | Exception) -> None:
        await self.queue.put(item)
        self.accepted |= not isinstance(item, Exception) and item[1].finish_reason not in ("deadline", "error")
        self.begun.set()

    async def wait_begun(self, seconds: float) -> None:
        """Until there is something to read, but no longer than `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.begun.wait()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """Until every choice has finished. Raises what the engine raised, or ApiError when a choice failed."""
        while self.n_open:
            item = await self.queue.get()
            if isinstance(item, Exception):
                raise item
            event = item[1]
            self.generated_tokens += len(event.token_ids)
            if event.finish_reason == "deadline":  # it waited as long as one may
                raise CapacityError(event.error or "engine: no slot came free")
            if event.finish_reason == "error":
                raise EngineError(event.error or "engine: the answer failed")
            self.n_open -= event.finish_reason is not None
            yield item

    def abort(self, error: ApiError) -> None:
        """End the stream with `error`, whatever it waits for (the server is going down)."""
        for task in self.tasks:
            task.cancel()
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(error)
        self.begun.set()

    async def close(self) -> None:
        """Stop whatever still runs in the engine. Called on every way out: the end, an error, a caller who left."""
        self.closing = True
        running = [task for task in self.tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.gather(*running, return_exceptions=True)
