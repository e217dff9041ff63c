"""From a generation's events to an answer, streamed or whole. Chat and completion differ in a choice's shape alone."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fledge.engine.request import Event, Request
from fledge.serve.access import AccessLog
from fledge.serve.chunks import ChunkFrames, TextFrames
from fledge.serve.errors import to_api_error
from fledge.serve.generation import Generation
from fledge.serve.logprobs import Aligner, Placed, TokenTexts
from fledge.serve.replies import ReplyHead, Usage, chat_choice, chat_delta, text_choice
from fledge.serve.service import Arrival, Service
from fledge.serve.stream import DONE, PING, frame
from fledge.serve.wire import Call

BEGIN_SECONDS = 2.0  # how long a stream's status waits for the engine's word: a refusal before it is a proper error
Choice = dict[str, Any]


class Progress:
    """One choice as it grows."""

    def __init__(self, index: int, number: int, aligner: Aligner | None):
        self.index = index
        self.number = number
        self.aligner = aligner
        self.parts: list[str] = []
        self.token_ids: list[int] = []
        self.placed: list[Placed] = []
        self.finish_reason: str | None = None
        self.score: float | None = None
        self.last_event: float | None = None
        self.texts: TextFrames | None = None

    def take(self, event: Event) -> list[Placed]:
        """Note an event; the log-probabilities that may be told with it."""
        placed = self.aligner.push(event) if self.aligner else []
        self.parts.append(event.text)
        self.token_ids += event.token_ids
        self.placed += placed
        self.finish_reason, self.score = event.finish_reason, event.score
        return placed


class Answer(ABC):
    """One HTTP request's answer. Subclasses give the shape of choices. `n_cut`: tokens cut off of each prompt."""

    def __init__(
        self,
        service: Service,
        call: Call,
        requests: list[Request],
        head: ReplyHead,
        arrival: Arrival,
        n_cut: Sequence[int] = (),
    ):
        self.service = service
        self.n_cut = n_cut
        self.call = call
        self.requests = requests
        self.head = head
        self.arrival = arrival
        self.record = arrival.record
        self.texts = TokenTexts(service.model.tokenizer)
        self.chunk_frames = ChunkFrames(head.chunk([], call.include_usage))
        self.plain = call.sampling.logprobs is None and not call.return_token_ids  # chunks differ in their text alone
        n = call.sampling.n
        self.progress = [self.new_progress(number * n + i, number) for number in range(len(requests)) for i in range(n)]

    def new_progress(self, index: int, number: int) -> Progress:
        aligner = None
        if self.call.sampling.logprobs is not None:
            aligner = Aligner(self.service.model.tokenizer, self.requests[number].prompt_ids, self.text_start(number))
        return Progress(index, number, aligner)

    def text_start(self, number: int) -> int:
        """Characters of the prompt that stand before an answer (echo)."""
        return 0

    def seeds(self) -> str:
        return ",".join(str(request.sampling.seed) for request in self.requests)

    async def whole(self) -> dict[str, Any]:
        """The reply's body."""
        async with self.service.generation(self.requests, self.arrival) as generation:
            async for number, event in generation.events():
                progress = self.note(number, event)
                self.first(progress, event)
                progress.take(event)
            return self.head.body([self.told_choice(progress) for progress in self.progress], self.usage(generation))

    def told_choice(self, progress: Progress) -> Choice:
        """An answer as a whole, with its score where it was searched for, and its ids and its prompt's where they were
        asked for."""
        choice = self.whole_choice(progress)
        if progress.score is not None:
            choice["score"] = progress.score
        if self.call.return_token_ids:
            request = self.requests[progress.number]
            choice |= {"token_ids": progress.token_ids, "prompt_token_ids": request.source_ids or request.prompt_ids}
        return choice

    async def frames(self, log: AccessLog) -> AsyncGenerator[bytes, None]:
        """The reply as server-sent events. What goes wrong before the first frame is raised, after it is a frame."""
        began = False
        try:
            async with self.service.generation(self.requests, self.arrival) as generation:
                await generation.wait_begun(BEGIN_SECONDS)
                async for data in self.chunks(generation):
                    began = True
                    yield data
        except Exception as error:
            if not began:
                raise
            answer = to_api_error(error)
            if answer.status == 500:
                log.failure(self.record.id, error)
            yield frame(answer.body())

    async def chunks(self, generation: Generation) -> AsyncGenerator[bytes, None]:
        with_usage = self.call.include_usage
        # The opening goes out with the first event if that is there, so a refused request is still a plain error.
        opening = b"".join(self.chunk_frames.of(choice) for one in self.progress for choice in self.opening(one))
        if not generation.begun.is_set():
            yield opening or PING
            opening = b""
        async for number, event in generation.events():
            data = self.event_frames(self.note(number, event), event)
            if opening or data:
                yield opening + data
                opening = b""
        usage = frame(self.head.chunk([], True, self.usage(generation))) if with_usage else b""
        yield usage + DONE

    def note(self, number: int, event: Event) -> Progress:
        """The choice an event belongs to, its timing counted."""
        progress = self.progress[number * self.call.sampling.n + event.index]
        now = time.perf_counter()
        metrics = self.service.metrics
        if progress.last_event is not None:
            metrics.between_tokens.observe(now - progress.last_event)
        elif all(other.last_event is None for other in self.progress):
            metrics.first_token.observe(self.record.seconds)
            self.record.values["first_token_milliseconds"] = round(self.record.seconds * 1000, 1)
        progress.last_event = now
        if event.finish_reason is not None:
            metrics.succeeded.labels(event.finish_reason).inc()
        return progress

    def usage(self, generation: Generation) -> Usage:
        return Usage(sum(request.prompt_tokens for request in self.requests), generation.generated_tokens)

    def event_frames(self, progress: Progress, event: Event) -> bytes:
        """The chunks of an event. Most events are a piece of text in the middle of an answer: those have a way of their
        own, since there is one a token."""
        if self.plain and progress.parts and event.finish_reason is None:
            progress.take(event)
            if progress.texts is None:
                progress.texts = self.chunk_frames.texts(self.piece(progress, "", []))
            return progress.texts.of(event.text) if event.text else b""
        choices = [*self.first(progress, event), *self.event_choices(progress, event)]
        return b"".join(map(self.chunk_frames.of, choices))

    def event_choices(self, progress: Progress, event: Event) -> list[Choice]:
        placed = progress.take(event)
        choices = []
        ids = {"token_ids": event.token_ids} if self.call.return_token_ids and event.token_ids else {}
        if event.text or placed or ids:
            choices.append(self.piece(progress, event.text, placed) | ids)
        if event.finish_reason is not None:
            choices.append(self.last_piece(progress))
        return choices

    def opening(self, progress: Progress) -> list[Choice]:
        """What goes out before any event."""
        return []

    def first(self, progress: Progress, event: Event) -> list[Choice]:
        """What goes out with a choice's first event, before its text."""
        return []

    @abstractmethod
    def piece(self, progress: Progress, text: str, placed: list[Placed]) -> Choice:
        """A choice that carries text, in a stream."""

    @abstractmethod
    def last_piece(self, progress: Progress) -> Choice:
        """The choice that says why an answer ended, in a stream."""

    @abstractmethod
    def whole_choice(self, progress: Progress) -> Choice:
        """An answer as a whole."""


class ChatAnswer(Answer):
    def logprobs(self, placed: list[Placed]) -> dict[str, Any] | None:
        return self.texts.chat(placed) if self.call.sampling.logprobs is not None else None

    def opening(self, progress: Progress) -> list[Choice]:
        return [chat_delta(progress.index, {"role": "assistant", "content": "", "refusal": None})]

    def piece(self, progress: Progress, text: str, placed: list[Placed]) -> Choice:
        return chat_delta(progress.index, {"content": text}, logprobs=self.logprobs(placed))

    def last_piece(self, progress: Progress) -> Choice:
        return chat_delta(progress.index, {}, progress.finish_reason)

    def whole_choice(self, progress: Progress) -> Choice:
        text = "".join(progress.parts)
        return chat_choice(progress.index, text, progress.finish_reason or "stop", self.logprobs(progress.placed))


class CompletionAnswer(Answer):
    """`prompt_texts`: what `echo` puts before the answers; `n_added`: tokens that we added before each prompt (BOS)."""

    def __init__(self, prompt_texts: list[str] | None, n_added: list[int], *rest: Any):
        self.prompt_texts = prompt_texts
        self.n_added = n_added
        super().__init__(*rest)

    def text_start(self, number: int) -> int:
        return len(self.prompt_texts[number]) if self.prompt_texts is not None else 0

    def logprobs(self, placed: list[Placed]) -> dict[str, Any] | None:
        return self.texts.completion(placed) if self.call.sampling.logprobs is not None else None

    def first(self, progress: Progress, event: Event) -> list[Choice]:
        if self.prompt_texts is None or progress.parts:
            return []
        text = self.prompt_texts[progress.number]
        placed = self.place_prompt(progress.number, event)
        progress.parts.append(text)
        progress.placed += placed
        return [self.piece(progress, text, placed)]

    def place_prompt(self, number: int, event: Event) -> list[Placed]:
        if event.prompt_logprobs is None:
            return []
        added = self.n_added[number]
        ids = self.requests[number].prompt_ids[added:]
        return self.texts.place(ids, event.prompt_logprobs[added:])

    def piece(self, progress: Progress, text: str, placed: list[Placed]) -> Choice:
        return text_choice(progress.index, text, None, self.logprobs(placed))

    def last_piece(self, progress: Progress) -> Choice:
        return text_choice(progress.index, "", progress.finish_reason, None)

    def whole_choice(self, progress: Progress) -> Choice:
        text = "".join(progress.parts)
        return text_choice(progress.index, text, progress.finish_reason or "stop", self.logprobs(progress.placed))
