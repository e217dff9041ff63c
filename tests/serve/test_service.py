"""The service without its process: what a request gets that comes too early, and what a stream sends before a token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from fledge.engine.request import Event, Request
from fledge.errors import CheckpointError, FledgeError
from fledge.serve import answer as answer_module
from fledge.serve.access import AccessLog
from fledge.serve.answer import Answer, ChatAnswer, CompletionAnswer
from fledge.serve.config import ServeConfig
from fledge.serve.errors import ApiError
from fledge.serve.gate import Record
from fledge.serve.replies import ReplyHead
from fledge.serve.served import open_model
from fledge.serve.service import Arrival, Service
from fledge.serve.stream import PING
from fledge.serve.wire import read_chat, read_completion

CONFIG = ServeConfig("stub:")


class SlowEngine:
    """Its first event comes after `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    async def submit(self, request: Request) -> AsyncIterator[Event]:
        await asyncio.sleep(self.seconds)
        yield Event(request.id, 0, (65,), "A", finish_reason="stop")


class FailingEngine:
    """It can't load its model, as is found out while a request waits for it."""

    state, was_ready = "loading", False

    async def wait_ready(self, seconds: float) -> None:
        self.state = "failed"
        raise CheckpointError("model: expected weights, got none")


def new_service(engine: object) -> Service:
    service = Service(CONFIG, open_model(CONFIG))
    service.engine = engine  # type: ignore[assignment]
    return service


def test_a_request_that_waits_for_a_model_that_fails_is_told_that_it_is_not_ready() -> None:
    with pytest.raises(FledgeError) as refused:
        asyncio.run(new_service(FailingEngine()).wait_open())
    assert isinstance(refused.value, ApiError)
    assert (refused.value.status, refused.value.code) == (503, "not_ready")


def first_frames(chat: bool, seconds: float) -> list[bytes]:
    """The frames of a stream whose first event comes after `seconds`."""
    service = new_service(SlowEngine(seconds))
    sampling = {"max_tokens": 4, "stream": True}

    async def run() -> list[bytes]:
        with service.admission.room_for(1, "t") as place:
            arrival = Arrival(Record(), "t", place)
            answer: Answer
            if chat:
                call = read_chat({"messages": [{"role": "user", "content": "Hi"}], **sampling})
                requests = [Request("r", (1,), call.sampling_for(1, 100, 263, None))]
                answer = ChatAnswer(service, call, requests, ReplyHead.chat("m", "f"), arrival)
            else:
                text_call = read_completion({"prompt": "Hi", **sampling})
                requests = [Request("r", (1,), text_call.sampling_for(1, 100, 263, 16))]
                head = ReplyHead.completion("m", "f")
                answer = CompletionAnswer(None, [0], service, text_call, requests, head, arrival)
            return [data async for data in answer.frames(AccessLog("off"))]

    frames = asyncio.run(run())
    assert service.admission.in_work == 0
    return frames


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_begins_before_its_first_token_when_that_takes_long(
    chat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers come with the first frame: proxies and clients give up on an answer that has none."""
    monkeypatch.setattr(answer_module, "BEGIN_SECONDS", 0.05)
    first, *rest = first_frames(chat, 0.3)
    assert b'"A"' not in first and b'"A"' in b"".join(rest)
    assert first.count(b"assistant") == 1 if chat else first == PING
    quick = first_frames(chat, 0.0)
    assert b'"A"' in quick[0] and PING not in quick  # the control: nothing extra where it is not needed
