"""/v1/embeddings and /classify: read, check, frame, one answer from the engine. The order is cheap refusals first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from fledge.engine.purpose import Purpose
from fledge.serve.caller import CallerLeft, Present
from fledge.serve.encoding import numbers_of
from fledge.serve.fields import wrong
from fledge.serve.gate import CLIENT_GONE
from fledge.serve.routes import CUT_HEADER, Routes, record_of
from fledge.serve.stream import to_json
from fledge.serve.vector_replies import classified, embedded
from fledge.serve.vector_rows import Rows, read_rows
from fledge.serve.vector_wire import CLASSIFY_FIELDS, EMBEDDING_FIELDS, VectorCall, read_classify, read_embeddings

IN_THREAD_NUMBERS = 50_000  # writing more of them as JSON would hold up others for milliseconds

Read = Callable[[dict[str, Any]], VectorCall]
Render = Callable[[VectorCall, Rows, np.ndarray], dict[str, Any]]


class VectorRoutes:
    """The handlers of a model that answers a text by numbers."""

    def __init__(self, routes: Routes):
        self.routes, self.service = routes, routes.service

    async def embeddings(self, request: HttpRequest) -> Response:
        return await self.answer(request, "embed", EMBEDDING_FIELDS, read_embeddings, self.embedded)

    async def classify(self, request: HttpRequest) -> Response:
        return await self.answer(request, "classify", CLASSIFY_FIELDS, read_classify, self.classified)

    async def answer(
        self, request: HttpRequest, purpose: Purpose, known: frozenset[str], read: Read, render: Render
    ) -> Response:
        """A place is held from before the body is read until the answer is there: a full server reads nothing."""
        service, record, tenant = self.service, record_of(request), self.routes.tenant(request.scope)
        if service.draining:
            service.check_ready()
        with service.admission.room_for(1, tenant, close=True):
            call = read(await self.routes.read(request, known))
            service.adapters.find(call.model)
            service.check_serves(purpose)
            rows = None
            try:
                async with Present(request.receive):
                    rows = await self.rows(call)
                    numbers = await numbers_of(service, rows.ids, record, tenant)
            except CallerLeft:
                if rows is None:
                    service.note_left(record)
                return Response(status_code=CLIENT_GONE)  # for the log; nobody reads it
        body = await self.written(render, call, rows, numbers)
        headers = {CUT_HEADER: ",".join(map(str, rows.n_cut))} if any(rows.n_cut) else {}
        return Response(body, 200, headers, "application/json")

    async def rows(self, call: VectorCall) -> Rows:
        await self.service.wait_open()
        width = self.service.engine.facts["width"]
        if call.dimensions is not None and call.dimensions > width:
            raise wrong("dimensions", f"at most the {width} of this model", call.dimensions)
        return await read_rows(self.service, call)

    async def written(self, render: Render, call: VectorCall, rows: Rows, numbers: np.ndarray) -> bytes:
        def work() -> bytes:
            return to_json(render(call, rows, numbers)).encode()

        return await asyncio.to_thread(work) if numbers.size > IN_THREAD_NUMBERS else work()

    def embedded(self, call: VectorCall, rows: Rows, vectors: np.ndarray) -> dict[str, Any]:
        unit = bool(self.service.engine.facts["unit"])
        return embedded(self.service.model.name, vectors, rows.n_tokens, call.encoding, call.dimensions, unit)

    def classified(self, call: VectorCall, rows: Rows, logits: np.ndarray) -> dict[str, Any]:
        facts = self.service.engine.facts
        return classified(self.service.model.name, logits, rows.n_tokens, facts["labels"], facts["several"])
