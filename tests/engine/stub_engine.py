"""Engines on a stub runner, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Completion, Event, Request, Sampling
from fledge.engine.row import Row
from fledge.engine.stub import StubRunner
from fledge.text.tokenizer import Tokenizer, byte_level

TOKENIZER = byte_level()


def stub_engine(
    n_slots: int = 4,
    prefill_chunk: int = 512,
    max_waiting: int = 256,
    runner: StubRunner | None = None,
    tokenizer: Tokenizer = TOKENIZER,
    stop_ids: Iterable[int] = (),
    prefix_cache: bool = True,
    clock: Callable[[], float] = time.monotonic,
    **runner_settings: Any,
) -> Engine:
    runner = runner or StubRunner(tokenizer.vocab_size, n_slots, **runner_settings)
    config = EngineConfig(
        n_slots=n_slots, prefill_chunk=prefill_chunk, max_waiting=max_waiting, prefix_cache=prefix_cache
    )
    return Engine(runner, tokenizer, config, stop_ids, clock)


def request(
    name: str,
    prompt: str = "hello",
    tenant: str = "",
    prompt_logprobs: bool = False,
    priority: int = 0,
    deadline_seconds: float | None = None,
    queue_seconds: float | None = None,
    **settings: Any,
) -> Request:
    ids = (TOKENIZER.bos_id, *TOKENIZER.encode(prompt))
    sampling = Sampling(**{"max_tokens": 12, **settings})
    return Request(name, ids, sampling, tenant, prompt_logprobs, priority, deadline_seconds, queue_seconds)


def drain(engine: Engine) -> list[Event]:
    events = []
    while engine.has_work:
        events += engine.step()
    return events


def joined(events: Sequence[Event], name: str, index: int = 0) -> tuple[str, tuple[int, ...], str | None]:
    """(text, token ids, finish reason) of one choice's events."""
    own = [event for event in events if event.request_id == name and event.index == index]
    finish = [event.finish_reason for event in own if event.finish_reason]
    assert len(finish) <= 1 and (not finish or own[-1].finish_reason)
    return (
        "".join(event.text for event in own),
        tuple(token for event in own for token in event.token_ids),
        finish[0] if finish else None,
    )


def said(completion: Completion) -> tuple[str, tuple[int, ...], str | None]:
    return completion.text, completion.token_ids, completion.finish_reason


class Recording(StubRunner):
    """A stub that remembers every call's rows."""

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.calls: list[list[Row]] = []

    def forward(self, rows: list[Row]) -> list[np.ndarray]:
        self.calls.append(rows)
        return super().forward(rows)
