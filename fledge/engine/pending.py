"""`PendingEvents`: one request's events between the engine process and a reader that may be slow. Imports no torch.

A fast reader gets every event as it came. For a slow one the events of a choice grow together into one, and beyond
MAX_PENDING_BYTES the buffer says that it is full.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fledge.engine.request import Event, FinishReason, TokenLogprob

MAX_PENDING_BYTES = 1 << 20
TOKEN_BYTES, LOGPROB_BYTES = 8, 32  # a generous guess at what an entry costs


def cost(event: Event) -> int:
    """Bytes that keeping an event takes, about."""
    told = [one for one in (*event.logprobs, *(event.prompt_logprobs or ())) if one is not None]
    n_logprobs = sum(1 + len(one.top) for one in told)
    return len(event.text.encode()) + TOKEN_BYTES * len(event.token_ids) + LOGPROB_BYTES * n_logprobs


@dataclass
class Merged:
    """The unread events of one choice."""

    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    score: float | None = None

    def add(self, event: Event) -> None:
        self.token_ids += event.token_ids
        self.texts.append(event.text)
        self.logprobs += event.logprobs
        self.finish_reason = event.finish_reason or self.finish_reason
        self.error = event.error or self.error
        self.prompt_logprobs = event.prompt_logprobs or self.prompt_logprobs
        self.score = event.score if event.score is not None else self.score


class PendingEvents:
    """A buffer with one writer and one reader on the same event loop. `n_choices` last events end it."""

    def __init__(self, request_id: str, n_choices: int):
        self.request_id = request_id
        self.open_choices = set(range(n_choices))
        self.by_choice: dict[int, Merged] = {}
        self.n_bytes = 0
        self.failure: Exception | None = None
        self.filled = asyncio.Event()

    @property
    def unread(self) -> bool:
        """Whether there is something that the reader has not taken."""
        return bool(self.by_choice)

    @property
    def full(self) -> bool:
        """Whether the reader is so far behind that the request should be given up."""
        return self.n_bytes > MAX_PENDING_BYTES

    def put(self, event: Event) -> None:
        """Add an event; one for a choice that has ended is dropped."""
        if event.index not in self.open_choices:
            return
        self.by_choice.setdefault(event.index, Merged()).add(event)
        self.n_bytes += cost(event)
        if event.finish_reason is not None:
            self.open_choices.discard(event.index)
        self.filled.set()

    def end(self, message: str) -> None:
        """End every choice that is still open with an error event."""
        for index in sorted(self.open_choices):
            self.put(Event(self.request_id, index, finish_reason="error", error=message))

    def refuse(self, failure: Exception) -> None:
        """The request was never begun: the reader gets `failure` raised."""
        self.failure = failure
        self.open_choices.clear()
        self.filled.set()

    async def take(self) -> list[Event]:
        """Everything unread, one event a choice, as soon as there is something; [] when all choices have ended.

        Raises what `refuse` was given."""
        while not self.by_choice:
            if self.failure is not None:
                raise self.failure
            if not self.open_choices:
                return []
            self.filled.clear()
            await self.filled.wait()
        merged, self.by_choice, self.n_bytes = self.by_choice, {}, 0
        return [
            Event(
                self.request_id,
                index,
                tuple(one.token_ids),
                "".join(one.texts),
                tuple(one.logprobs),
                one.finish_reason,
                one.error,
                one.prompt_logprobs,
                one.score,
            )
            for index, one in merged.items()
        ]
