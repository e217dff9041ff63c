"""The routes: read, check, hand to the engine, answer. The order is cheap refusals first."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
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
from fledge.serve.caller import CallerLeft, Present
from fledge.serve.fields import count_unknown
from fledge.serve.gate import CLIENT_GONE, RECORD, Record
from fledge.serve.metrics import CONTENT_TYPE
from fledge.serve.prompts import long_input, longest, prompt_text, read_prompt, read_source
from fledge.serve.replies import ReplyHead, model_card
from fledge.serve.served import ServedModel
from fledge.serve.service import Arrival, Service
from fledge.serve.stream import EventStream, to_json
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
            tree, answer = await self.read(request, known), None
            try:
                async with Present(request.receive):
                    answer = await prepare(tree, Arrival(record, tenant, place))
                    return await self.answer(answer)
            except CallerLeft:
                if answer is None:
                    service.note_left(record)
                return Response(status_code=CLIENT_GONE)  # for the log; nobody reads it

    async def read(self, request: HttpRequest, known: frozenset[str]) -> dict[str, Any]:
        config = self.service.config
        tree = await read_json(request, config.max_body_bytes, config.body_seconds)
        self.service.metrics.unknown_fields.inc(count_unknown(tree, known, config.strict))
        return tree

    async def chat_answer(self, tree: dict[str, Any], arrival: Arrival) -> Answer:
        service, call = self.service, read_chat(tree)
        model = self.check(call, 1)
        await service.wait_open()
        policy = long_input(service, call)
        context_tokens = service.context_tokens or 0
        ids, n_cut = await service.render(model, call.messages, policy.room(call.max_tokens, context_tokens))
        n_cut += policy.hidden(len(ids), context_tokens)
        head = ReplyHead.chat(model.name, model.fingerprint)
        sampling = service.ending_turns(model, self.sampling(call, len(ids), None))
        asked = Request(head.id, tuple(ids), sampling, arrival.tenant, long_input=policy, adapter=model.adapter)
        requests = [self.searched(call, asked)]
        return ChatAnswer(service, call, requests, head, arrival, [n_cut])

    async def completion_answer(self, tree: dict[str, Any], arrival: Arrival) -> Answer:
        service, call = self.service, read_completion(tree)
        model = self.check(call, len(call.prompts))
        await service.wait_open()
        head = ReplyHead.completion(model.name, model.fingerprint)
        if service.source_tokens:
            return await self.source_answer(model, call, head, arrival)
        requests, read, policy = [], [], long_input(service, call)
        for number, prompt in enumerate(call.prompts):
            read.append(one := await read_prompt(service, call, prompt))
            sampling = self.sampling(call, len(one.ids), DEFAULT_COMPLETION_TOKENS)
            measured = call.echo and sampling.logprobs is not None
            name = f"{head.id}-{number}"
            asked = Request(name, one.ids, sampling, arrival.tenant, measured, long_input=policy, adapter=model.adapter)
            requests.append(self.searched(call, asked))
        texts = None
        if call.echo:
            texts = [prompt_text(service, prompt, one) for prompt, one in zip(call.prompts, read, strict=True)]
        n_added, n_cut = [one.n_added for one in read], [one.n_cut for one in read]
        return CompletionAnswer(texts, n_added, service, call, requests, head, arrival, n_cut)

    async def source_answer(
        self, model: ServedModel, call: CompletionCall, head: ReplyHead, arrival: Arrival
    ) -> Answer:
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
            asked = Request(f"{head.id}-{number}", start, sampling, arrival.tenant, adapter=model.adapter)
            requests.append(self.searched(call, replace(asked, source_ids=source.ids)))
        return CompletionAnswer(None, [0] * len(requests), self.service, call, requests, head, arrival, n_cut)

    def check(self, call: Call, n_prompts: int) -> ServedModel:
        """What can be refused before anything is encoded or the model is there. Gives whom the call is for."""
        call.check_ranges(self.service.model.tokenizer.vocab_size)
        model = self.service.adapters.find(call.model)
        self.service.check_serves("generate")
        most = self.service.admission.share
        if n_prompts * call.n_places > most:
            param, width = "prompt" if n_prompts > 1 else call.width_name, call.width_name
            message = f"{param}: expected at most {most} answers in one request (prompts times {width})"
            raise RequestError(message, param)
        return model

    def searched(self, call: Call, request: Request) -> Request:
        """The request with the call's search, if it has one. Raises RequestError where the engine has no room for it,
        and for one that would go on past the context."""
        if call.search is None:
            return request
        policy = long_input(self.service, call).policy
        if policy not in ("refuse", "truncate"):
            message = f"overflow: expected refuse or truncate beside a beam search, got {policy}"
            raise RequestError(message, "overflow", "unsupported_parameter")
        call.check_room(len(request.prompt_ids), request.sampling.max_tokens, self.service.engine.facts)
        return replace(request, search=call.search)

    def sampling(self, call: Call, prompt_tokens: int, open_tokens: int | None) -> Sampling:
        service, most = self.service, longest(self.service, call)
        open_tokens = long_input(service, call).open_tokens(service.context_tokens or 0, open_tokens)
        return call.sampling_for(prompt_tokens, most, service.engine.facts["vocab_size"], open_tokens)

    async def answer(self, answer: Answer) -> Any:
        """The stream, once there is something to send, or the whole reply."""
        headers = {SEED_HEADER: answer.seeds()}
        if any(answer.n_cut):
            headers[CUT_HEADER] = ",".join(map(str, answer.n_cut))
        if not answer.call.stream:
            return json_response(await answer.whole(), headers=headers)
        frames = answer.frames(self.log)
        try:
            first = await anext(frames)
        except BaseException:
            await frames.aclose()
            raise
        return EventStream(first, frames, headers.items())

    async def models(self, request: HttpRequest) -> Response:
        adapters = [self.card(one.model, one.created) for one in self.service.adapters.all()]
        return json_response({"object": "list", "data": [self.card(self.service.model), *adapters]})

    async def model(self, request: HttpRequest) -> Response:
        return json_response(self.card(self.service.adapters.find(request.path_params["name"])))

    def card(self, model: ServedModel, created: int = 0) -> dict[str, Any]:
        service = self.service
        parent = service.model.name if model.adapter else None
        created = created or service.created
        chat = model.renderer is not None
        return model_card(model.name, created, service.context_tokens, chat, service.model.purpose, parent)

    async def load_adapter(self, request: HttpRequest) -> Response:
        """vLLM's route: {lora_name, lora_path}."""
        name, path = await self.adapter_words(request, ("lora_name", "lora_path"))
        model = await self.service.adapters.load(name, path)
        return json_response({"status": "loaded", "model": model.name})

    async def unload_adapter(self, request: HttpRequest) -> Response:
        """vLLM's route: {lora_name}."""
        (name,) = await self.adapter_words(request, ("lora_name",))
        await self.service.adapters.unload(name)
        return json_response({"status": "unloaded", "model": f"{self.service.model.name}:{name}"})

    async def adapter_words(self, request: HttpRequest, fields: tuple[str, ...]) -> list[str]:
        tree = await self.read(request, frozenset(fields))
        for field in fields:
            if not isinstance(tree.get(field), str) or not tree[field]:
                raise RequestError(f"{field}: expected a text that is not empty", field)
        await self.service.wait_open()
        return [tree[field] for field in fields]

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
    return Response(to_json(body).encode("utf-8"), status, headers, "application/json")
