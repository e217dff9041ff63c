"""`Service`: what the routes share. The engine's client, the tokenizer and renderer, limits, figures and the state."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from fledge.engine.client import EngineClient
from fledge.engine.request import Request, Sampling
from fledge.engine.vector_client import VectorClient
from fledge.errors import ConfigError, FledgeError, RequestError, TokenizerError
from fledge.serve.adapters import ServedAdapters, split
from fledge.serve.config import ServeConfig
from fledge.serve.errors import ApiError, to_api_error, unavailable
from fledge.serve.gate import Record
from fledge.serve.generation import Generation, Work
from fledge.serve.limits import Admission, Place
from fledge.serve.metrics import Metrics
from fledge.serve.served import ServedModel
from fledge.text.chat import Message
from fledge.text.turns import render_fitted

IN_THREAD_CHARACTERS = 20_000  # encoding more text would hold up every other stream for milliseconds
EXACT_CHARACTERS = 1 << 20  # up to here a prompt that is too long is told its exact number of tokens

T = TypeVar("T")
MAX_IN_TEMPLATE = 32  # conversations that wait for a template's process, which takes one after the other
INSTEAD = {
    "generate": "it writes text: use /v1/completions",
    "embed": "it gives vectors: use /v1/embeddings",
    "classify": "it judges texts: use /classify",
    "score": "it weighs one text against another: use /score or /rerank",
    "token-classification": "it gives tags of words: use /token-classification",
    "question-answering": "it finds answers in texts: use /question-answering",
    "multiple-choice": "it chooses between answers: use /multiple-choice",
    "fill-mask": "it fills masks: use /fill-mask",
}


@dataclass(frozen=True)
class Arrival:
    """A generation request on its way: `place` is held for it until its answers have their own."""

    record: Record
    tenant: str
    place: Place


class Service:
    """One served model. `draining` says that no new work is taken."""

    def __init__(self, config: ServeConfig, model: ServedModel):
        self.config = config
        self.model = model
        self.engine: EngineClient
        if model.purpose == "generate":
            self.engine = EngineClient(config.model, config.engine, split(config.adapters))
        elif config.adapters or config.adapters_dir:
            raise ConfigError("adapters: expected a model that writes text, got one that gives numbers; leave them out")
        else:
            self.engine = VectorClient(config.model, config.engine, config.vectors)
        self.adapters = ServedAdapters(model, self.engine, config.adapters_dir, config.max_adapters)
        self.admission = Admission(config.max_choices, config.queue_seconds, config.engine.n_slots)
        self.metrics = Metrics(self.engine.counters, self.engine_pid)
        self.metrics.ready.set_function(lambda: float(self.state() == "ready"))
        self.created = int(time.time())
        self.draining = False
        self.running: set[Work] = set()
        self.template_thread = ThreadPoolExecutor(1, "chat-template")
        self.n_in_template = 0

    def engine_pid(self) -> int | None:
        return self.engine.process.pid if self.engine.process is not None else None

    @property
    def context_tokens(self) -> int | None:
        """Known once the engine was ready."""
        return self.engine.facts.get("context_tokens")

    @property
    def reach_tokens(self) -> int:
        """Longest prompt and answer of a request that goes on past the context; 0 where none may."""
        return int(self.engine.facts.get("reach_tokens", 0))

    @property
    def source_tokens(self) -> int:
        """The longest prompt of an encoder–decoder, which reads it as its source; 0 for other models, and before the
        engine was ready."""
        return int(self.engine.facts.get("source_tokens", 0))

    def state(self) -> str:
        """`loading`, `ready`, `draining`, `restarting` or `failed`."""
        if self.draining:
            return "draining"
        names = {
            "ready": "ready",
            "dead": "restarting",
            "failed": "failed",
            "draining": "draining",
            "stopped": "draining",
        }
        if self.engine.state in ("new", "loading") and self.engine.was_ready:
            return "restarting"
        return names.get(self.engine.state, "loading")

    def check_ready(self) -> None:
        """Raise ApiError 503 unless new work is taken now."""
        state = self.state()
        if state == "draining":
            raise unavailable("The server is shutting down.", "draining", close=True)
        if state != "ready":
            raise unavailable(f"The model is not ready ({state}).", "not_ready")

    async def wait_open(self) -> None:
        """As `check_ready`, but a request that comes while the model loads for the first time may wait for it."""
        if self.state() == "loading":
            with contextlib.suppress(FledgeError):  # whatever it was, `check_ready` has the answer
                await self.engine.wait_ready(self.config.start_wait_seconds)
        self.check_ready()

    def check_serves(self, verb: str) -> None:
        """Raise ApiError 400 unless the model does this."""
        if verb not in self.model.verbs:
            own = "; ".join(INSTEAD[one] for one in self.model.verbs)
            raise ApiError(400, f"This model does not do that ({own}).", "model", "unsupported_model")

    async def encode(self, text: str) -> list[int]:
        """The ids of a text, special tokens in it staying text; long texts in a thread. Raises ApiError 400."""
        return await self.off_loop([text], "prompt", lambda: self.model.tokenizer.encode(text))

    async def render(
        self, model: ServedModel, messages: tuple[Message, ...], room: tuple[int, int]
    ) -> tuple[list[int], int]:
        """(ids of a conversation and of the head of the answer, how many tokens the oldest turns had that were left
        out where it is longer than the `room`: see `render_fitted`). Raises ApiError 400 for a base model."""
        renderer = model.renderer
        if renderer is None:
            kind = "it is a base model, or has one of its own"
            if model.reads_source:
                kind = "an encoder-decoder: it reads one text and answers it"
            message = f"This model has no chat format ({kind}); use /v1/completions."
            raise ApiError(400, message, "messages", "chat_not_supported")
        texts = [message.content for message in messages]

        def work() -> tuple[list[int], int]:
            return render_fitted(renderer, messages, *room)

        return await (self.in_template if renderer.in_child else self.off_loop)(texts, "messages", work)

    def ending_turns(self, model: ServedModel, sampling: Sampling) -> Sampling:
        """`sampling` that also stops where the chat format of `model` ends a turn."""
        renderer = model.renderer
        if renderer is None or sampling.ignore_eos:
            return sampling
        further = set(renderer.stop_ids) - set(self.model.tokenizer.stop_ids)
        return replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *sorted(further)))

    async def in_template(self, texts: list[str], param: str, work: Callable[[], T]) -> T:
        """As `off_loop`, in a thread of its own: a foreign template may take seconds, and others shan't wait for it."""
        self.refuse_hopeless(sum(map(len, texts)), param)
        if self.n_in_template >= MAX_IN_TEMPLATE:
            raise unavailable("Too many conversations wait for the model's chat template.", "overloaded")
        self.n_in_template += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.template_thread, work)
        except TokenizerError:
            raise ApiError(400, "The text can't be encoded with this model's vocabulary.", param) from None
        finally:
            self.n_in_template -= 1

    async def off_loop(self, texts: list[str], param: str, work: Callable[[], T]) -> T:
        size = sum(map(len, texts))
        self.refuse_hopeless(size, param)
        try:
            return await asyncio.to_thread(work) if size > IN_THREAD_CHARACTERS else work()
        except TokenizerError:
            raise ApiError(400, "The text can't be encoded with this model's vocabulary.", param) from None

    def refuse_hopeless(self, characters: int, param: str) -> None:
        """Refuse a text that is large and can't fit however it is encoded: encoding takes some 100 bytes a token."""
        context_tokens = self.source_tokens or max(self.context_tokens or 0, self.reach_tokens)
        least = characters // self.model.longest_token
        if characters > EXACT_CHARACTERS and least > context_tokens:
            raise RequestError(
                f"{param}: expected at most {context_tokens} tokens, got {least} or more; shorten it",
                param,
                "context_length_exceeded",
            )

    @contextlib.asynccontextmanager
    async def generation(self, requests: list[Request], arrival: Arrival) -> AsyncIterator[Generation]:
        """Admit, run, count and stop one HTTP request's work. Raises ApiError 503 when there is no room."""
        arrival.place.release()
        n_choices, pace = sum(request.n_places for request in requests), self.admission.pace
        with self.admission.room_for(n_choices, arrival.tenant):
            prompt_tokens = sum(request.prompt_tokens for request in requests)
            pace.enter(arrival.tenant, n_choices)
            if self.config.queue_seconds:  # the first prompt's time in the line: the others may wait for their siblings
                requests = [replace(requests[0], queue_seconds=self.config.queue_seconds), *requests[1:]]
            generation = Generation(self.engine, requests)
            self.running.add(generation)
            failed: BaseException | None = None
            try:
                yield generation
            except BaseException as error:
                failed = error
                raise
            finally:
                self.running.discard(generation)
                await generation.close()
                pace.leave(arrival.tenant, n_choices, n_choices if generation.generated_tokens else 0)
                self.count(generation, prompt_tokens, arrival.record, failed)

    def count(self, generation: Work, prompt_tokens: int, record: Record, failed: BaseException | None) -> None:
        metrics = self.metrics
        record.values.update(prompt_tokens=prompt_tokens, completion_tokens=generation.generated_tokens)
        if generation.accepted:
            metrics.prompt_tokens.inc(prompt_tokens)
        metrics.generation_tokens.inc(generation.generated_tokens)
        if failed is None:
            metrics.whole.observe(record.seconds)
        elif isinstance(failed, Exception):
            code = to_api_error(failed).code or "error"
            metrics.failed.labels(code).inc()
            record.values["error"] = code
        else:  # cancelled, or the generator was closed: the caller left
            self.note_left(record)

    def note_left(self, record: Record) -> None:
        """The caller of a generation request left before its end."""
        self.metrics.disconnected.inc()
        record.values["left"] = True

    def abort(self) -> None:
        """End every running answer with an error, at once."""
        for generation in list(self.running):
            generation.abort(unavailable("The server is shutting down.", "draining", close=True))

    async def drain(self) -> None:
        """Take no new work and wait until the running answers have ended (cancel this to wait no longer)."""
        self.draining = True
        self.metrics.draining.set(1)
        while self.running:
            await asyncio.sleep(0.02)
