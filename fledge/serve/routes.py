"""The routes: read, check, hand to the engine, answer. The order is cheap refusals first."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Scope

import fledge
from fledge.engine.request import Request, Sampling
from fledge.errors import RequestError
from fledge.serve.access import AccessLog
from fledge.serve.answer import Answer, ChatAnswer, CompletionAnswer
from fledge.serve.body import read_json
from fledge.serve.fields import count_unknown
from fledge.serve.gate import CLIENT_GONE, RECORD, Record
from fledge.serve.metrics import CONTENT_TYPE
from fledge.serve.prompts import long_input, longest, prompt_text, read_prompt, read_source
from fledge.serve.replies import ReplyHead, model_card
from fledge.serve.service import Arrival, Service
from fledge.serve.stream import CallerLeft, EventStream, while_connected
from fledge.serve.wire import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    DEFAULT_COMPLETION_TOKENS,
    Call,
    CompletionCall,
    read_chat,
    read_completion,
)

SEED_HEADER, CUT_HEADER = "x-fledge-seed", "x-fledge-cut-tokens"

Prepare = Callable[[dict[str, Any], Arrival], Coroutine[Any, Any, Answer]]


class Routes:
    """The handlers of one service. `tenant` says whose a request is."""

    def __init__(self, service: Service, tenant: Callable[[Scope], str], log: AccessLog):
        self.service = service
        self.tenant = tenant
        self.log = log

    async def chat_completions(self, request: HttpRequest) -> Any:
        return await self.generate(request, CHAT_FIELDS, self.chat_answer)

    async def completions(self, request: HttpRequest) -> Any:
        return await self.generate(request, COMPLETION_FIELDS, self.completion_answer)

    async def generate(self, request: HttpRequest, known: frozenset[str], prepare: Prepare) -> Any:
        """Read, check, answer. A place is held from before the body is read, and whoever leaves is noticed from its end
        on: a full server reads nothing, and nobody's prompt is encoded for nothing."""
        service, record, tenant = self.service, record_of(request), self.tenant(request.scope)
        if service.draining:
            service.check_ready()
        with service.admission.room_for(1, tenant, close=True) as place:
            tree = await self.read(request, known)
            try:
                answer = await while_connected(request, prepare(tree, Arrival(record, tenant, place)))
            except CallerLeft:
                service.note_left(record)
                return Response(status_code=CLIENT_GONE)  # for the log; nobody reads it
            return await self.answer(request, answer)

    async def read(self, request: HttpRequest, known: frozenset[str]) -> dict[str, Any]:
        config = self.service.config
        tree = await read_json(request, config.max_body_bytes, config.body_seconds)
        self.service.metrics.unknown_fields.inc(count_unknown(tree, known, config.strict))
        return tree

    async def chat_answer(self, tree: dict[str, Any], arrival: Arrival) -> Answer:
        service, call = self.service, read_chat(tree)
        self.check(call, 1)
        await service.wait_open()
        policy = long_input(service, call)
        ids, n_cut = await service.render(call.messages, policy.room(call.max_tokens, service.context_tokens or 0))
        head = ReplyHead.chat(service.model.name, service.model.fingerprint)
        sampling = service.ending_turns(self.sampling(call, len(ids), None))
        requests = [Request(head.id, tuple(ids), sampling, arrival.tenant, long_input=policy)]
        return ChatAnswer(service, call, requests, head, arrival, [n_cut])

    async def completion_answer(self, tree: dict[str, Any], arrival: Arrival) -> Answer:
        service, call = self.service, read_completion(tree)
        self.check(call, len(call.prompts))
        await service.wait_open()
        head = ReplyHead.completion(service.model.name, service.model.fingerprint)
        if service.source_tokens:
            return await self.source_answer(call, head, arrival)
        requests, read, policy = [], [], long_input(service, call)
        for number, prompt in enumerate(call.prompts):
            read.append(one := await read_prompt(service, call, prompt))
            sampling = self.sampling(call, len(one.ids), DEFAULT_COMPLETION_TOKENS)
            measured = call.echo and sampling.logprobs is not None
            name = f"{head.id}-{number}"
            requests.append(Request(name, one.ids, sampling, arrival.tenant, measured, long_input=policy))
        texts = None
        if call.echo:
            texts = [prompt_text(service, prompt, one) for prompt, one in zip(call.prompts, read, strict=True)]
        n_added, n_cut = [one.n_added for one in read], [one.n_cut for one in read]
        return CompletionAnswer(texts, n_added, service, call, requests, head, arrival, n_cut)

    async def source_answer(self, call: CompletionCall, head: ReplyHead, arrival: Arrival) -> Answer:
        """An encoder–decoder's: each prompt is a source, and the decoder begins at its start."""
        if call.echo:
            message = "echo: this model answers its prompt and does not continue it; leave echo out"
            raise RequestError(message, "echo", "unsupported_parameter")
        start = (self.service.engine.facts["start_id"],)
        requests, n_cut = [], []
        for number, prompt in enumerate(call.prompts):
            source = await read_source(self.service, call, prompt)
            n_cut.append(source.n_cut)
            sampling = self.sampling(call, len(start), DEFAULT_COMPLETION_TOKENS)
            requests.append(Request(f"{head.id}-{number}", start, sampling, arrival.tenant, source_ids=source.ids))
        return CompletionAnswer(None, [0] * len(requests), self.service, call, requests, head, arrival, n_cut)

    def check(self, call: Call, n_prompts: int) -> None:
        """What can be refused before anything is encoded or the model is there."""
        call.check_ranges(self.service.model.tokenizer.vocab_size)
        self.service.check_model(call.model)
        self.service.check_serves("generate")
        most = self.service.admission.share
        if n_prompts * call.sampling.n > most:
            param = "prompt" if n_prompts > 1 else "n"
            raise RequestError(f"{param}: expected at most {most} answers in one request (prompts times n)", param)

    def sampling(self, call: Call, prompt_tokens: int, open_tokens: int | None) -> Sampling:
        context_tokens = longest(self.service, call)
        return call.sampling_for(prompt_tokens, context_tokens, self.service.engine.facts["vocab_size"], open_tokens)

    async def answer(self, request: HttpRequest, answer: Answer) -> Any:
        """The stream or the whole reply; either ends its work in the engine when the caller leaves."""
        headers = {SEED_HEADER: answer.seeds()}
        if any(answer.n_cut):
            headers[CUT_HEADER] = ",".join(map(str, answer.n_cut))
        if not answer.call.stream:
            try:
                body = await while_connected(request, answer.whole())
            except CallerLeft:
                return Response(status_code=CLIENT_GONE)
            return json_response(body, headers=headers)
        frames = answer.frames(self.log)
        try:
            first = await while_connected(request, anext(frames))
        except BaseException as error:
            await frames.aclose()
            if isinstance(error, CallerLeft):
                return Response(status_code=CLIENT_GONE)
            raise
        return EventStream(first, frames, headers.items())

    async def models(self, request: HttpRequest) -> Response:
        return json_response({"object": "list", "data": [self.card()]})

    async def model(self, request: HttpRequest) -> Response:
        self.service.check_model(request.path_params["name"])
        return json_response(self.card())

    def card(self) -> dict[str, Any]:
        model, service = self.service.model, self.service
        chat = model.renderer is not None
        return model_card(model.name, service.created, service.context_tokens, chat, model.purpose)

    async def health(self, request: HttpRequest) -> Response:
        """Live: the process answers. It says nothing about the engine."""
        return json_response({"status": "ok"})

    async def ready(self, request: HttpRequest) -> Response:
        self.service.check_ready()
        return json_response({"status": "ready"})

    async def version(self, request: HttpRequest) -> Response:
        return json_response({"version": fledge.__version__})

    async def metrics(self, request: HttpRequest) -> Response:
        return Response(self.service.metrics.text(), media_type=CONTENT_TYPE)


def record_of(request: HttpRequest) -> Record:
    record: Record = request.scope[RECORD]
    return record


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return Response(data, status, headers, "application/json")
