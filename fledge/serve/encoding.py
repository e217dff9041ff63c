"""One HTTP request's rows in the engine of vectors and task heads: admitted, counted, cut off when the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np

from fledge.engine.row_queue import RowRequest
from fledge.engine.vector_client import VectorClient
from fledge.serve.errors import ApiError
from fledge.serve.gate import Record
from fledge.serve.ids import new_reply_id
from fledge.serve.service import Service
from fledge.serve.vector_rows import Rows


class Encoding:
    """The work of one request, which `abort` ends with an error whatever it waits for."""

    def __init__(self) -> None:
        self.accepted = False
        self.generated_tokens = 0
        self.cut_off: asyncio.Future[list[np.ndarray]] = asyncio.get_running_loop().create_future()

    def abort(self, error: ApiError) -> None:
        if not self.cut_off.done():
            self.cut_off.set_exception(error)

    async def result_of(self, work: Coroutine[Any, Any, list[np.ndarray]]) -> list[np.ndarray]:
        working = asyncio.create_task(work)
        try:
            done, _ = await asyncio.wait({working, self.cut_off}, return_when=asyncio.FIRST_COMPLETED)
            return (working if working in done else self.cut_off).result()
        finally:
            for one in (working, self.cut_off):
                one.cancel()
            await asyncio.gather(working, self.cut_off, return_exceptions=True)


async def numbers_of(service: Service, rows: Rows, record: Record, tenant: str) -> list[np.ndarray]:
    """float32 [n, width] of each row that was admitted. Raises what the engine raises, and ApiError 503 at a stop."""
    engine, pace, encoding = service.engine, service.admission.pace, Encoding()
    assert isinstance(engine, VectorClient)
    wait_seconds = service.config.queue_seconds
    request = RowRequest(new_reply_id("rows"), rows.ids, tenant, wait_seconds, rows.kinds, rows.top_k)
    pace.enter(tenant, 1)
    service.running.add(encoding)
    failed: BaseException | None = None
    try:
        found = await encoding.result_of(engine.numbers(request))
        encoding.accepted = True
        service.metrics.succeeded.labels("encoded").inc(len(rows.ids))
        return found
    except BaseException as error:
        failed = error
        raise
    finally:
        service.running.discard(encoding)
        pace.leave(tenant, 1, int(encoding.accepted))
        service.count(encoding, request.n_tokens, record, failed)
