"""Models that answer texts by numbers: a `Verb` is what one route asks of them, and VectorRoutes answers it: read,
check, frame, one answer from the engine. The order is cheap refusals first. Here are /v1/embeddings and /classify.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fledge.serve.caller import CallerLeft, Present
from fledge.serve.encoding import numbers_of
from fledge.serve.fields import wrong
from fledge.serve.gate import CLIENT_GONE
from fledge.serve.routes import CUT_HEADER, Routes, record_of
from fledge.serve.service import Service
from fledge.serve.stream import to_json
from fledge.serve.vector_replies import classified, embedded
from fledge.serve.vector_rows import Rows, read_rows
from fledge.serve.vector_wire import CLASSIFY_FIELDS, EMBEDDING_FIELDS, VectorCall, read_classify, read_embeddings

IN_THREAD_NUMBERS = 50_000  # writing more of them as JSON would hold up others for milliseconds


@dataclass(frozen=True)
class Verb:
    """One thing that a model does with texts. `read`: a body's fields as a call, which has a `model`; `lay`: the call
    as rows; `tell`: the reply's body, of the call, its rows and the numbers of each."""

    name: str
    known: frozenset[str]
    read: Callable[[dict[str, Any]], Any]
    lay: Callable[[Service, Any], Awaitable[Rows]]
    tell: Callable[[Service, Any, Any, list[np.ndarray]], Any]


class VectorRoutes:
    """The handlers of a model that answers a text by numbers."""

    def __init__(self, routes: Routes):
        self.routes, self.service = routes, routes.service

    def handler(self, verb: Verb) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def handle(request: HttpRequest) -> Response:
            return await self.answer(request, verb)

        return handle

    async def answer(self, request: HttpRequest, verb: Verb) -> Response:
        """A place is held from before the body is read until the answer is there: a full server reads nothing."""
        service, record, tenant = self.service, record_of(request), self.routes.tenant(request.scope)
        if service.draining:
            service.check_ready()
        with service.admission.room_for(1, tenant, close=True):
            call = verb.read(await self.routes.read(request, verb.known))
            service.adapters.find(call.model)
            service.check_serves(verb.name)
            rows = None
            try:
                async with Present(request.receive):
                    await service.wait_open()
                    rows = await verb.lay(service, call)
                    numbers = await numbers_of(service, rows, record, tenant)
            except CallerLeft:
                if rows is None:
                    service.note_left(record)
                return Response(status_code=CLIENT_GONE)  # for the log; nobody reads it

        def written() -> bytes:
            return to_json(verb.tell(service, call, rows, numbers)).encode()

        large = sum(one.size for one in numbers) > IN_THREAD_NUMBERS
        body = await asyncio.to_thread(written) if large else written()
        headers = {CUT_HEADER: ",".join(map(str, rows.n_cut))} if any(rows.n_cut) else {}
        return Response(body, 200, headers, "application/json")


async def lay_texts(service: Service, call: VectorCall) -> Rows:
    width = service.engine.facts["width"]
    if call.dimensions is not None and call.dimensions > width:
        raise wrong("dimensions", f"at most the {width} of this model", call.dimensions)
    return await read_rows(service, call)


def told_vectors(service: Service, call: VectorCall, rows: Rows, numbers: list[np.ndarray]) -> dict[str, Any]:
    name, unit = service.model.name, bool(service.engine.facts["unit"])
    return embedded(name, np.concatenate(numbers), rows.n_tokens, call.encoding, call.dimensions, unit)


def told_labels(service: Service, call: VectorCall, rows: Rows, numbers: list[np.ndarray]) -> dict[str, Any]:
    name, facts = service.model.name, service.engine.facts
    as_is = not call.use_activation or (facts["purpose"] == "score" and not facts["share"])
    return classified(name, np.concatenate(numbers), rows.n_tokens, facts["labels"], facts["several"], as_is)


EMBEDDINGS = Verb("embed", EMBEDDING_FIELDS, read_embeddings, lay_texts, told_vectors)
CLASSIFY = Verb("classify", CLASSIFY_FIELDS, read_classify, lay_texts, told_labels)
