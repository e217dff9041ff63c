"""One door for every request: its id, limits, guard, access line and figures. An ASGI application around the routes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fledge.serve.access import AccessLog
from fledge.serve.errors import to_api_error, unavailable
from fledge.serve.front import check_size
from fledge.serve.guard import PAGE_PREFIX, Guard
from fledge.serve.ids import new_request_id

RECORD = "fledge.record"
CLIENT_GONE = 499


@dataclass
class Record:
    """What one request did, for the log and the figures. Routes fill in `values`."""

    id: str = field(default_factory=new_request_id)
    began: float = field(default_factory=time.perf_counter)
    status: int | None = None
    failure_logged: bool = False
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began


class Figures(Protocol):
    """Who counts answers."""

    def count_answer(self, route: str, method: str, status: int) -> None: ...


class Gate:
    """`routes`: paths by which answers are counted, each by itself, where they have no parameter."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Figures, log: AccessLog, routes: Iterable[str] = ()):
        self.app = app
        self.routes = frozenset(route for route in routes if "{" not in route)
        self.guard = guard
        self.metrics = metrics
        self.log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = scope[RECORD] = Record()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                marks = [(b"x-request-id", record.id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", []), *marks]}
            await send(message)

        try:
            check_size(len(scope["raw_path"]) + len(scope["query_string"]), scope["headers"])
            self.guard.check(scope)
            await self.app(scope, receive, send_marked)
        except asyncio.CancelledError:
            if record.status is None:  # uvicorn gives up on us at its own end, and would answer in plain text
                await unavailable("The server is shutting down.", "draining").response()(scope, receive, send_marked)
        except Exception as error:
            if record.status is None:
                await to_api_error(error).response()(scope, receive, send_marked)
            elif not record.failure_logged and not isinstance(error, TimeoutError):  # a caller who stopped reading
                self.log.failure(record.id, error)
        finally:
            self.finish(scope, record)

    def finish(self, scope: Scope, record: Record) -> None:
        status = record.status or CLIENT_GONE
        self.metrics.count_answer(self.route_name(scope["path"]), scope["method"], status)
        self.log.answer(
            request_id=record.id,
            method=scope["method"],
            path=scope["path"],
            status=status,
            milliseconds=round(record.seconds * 1000, 1),
            **record.values,
        )

    def refused(self, request_id: str, status: int) -> None:
        """A request that the protocol refused before there was one."""
        self.metrics.count_answer("other", "other", status)
        self.log.answer(request_id=request_id, method="-", path="-", status=status)

    def route_name(self, path: str) -> str:
        """A path as a metric's label: from a closed set, whatever callers invent."""
        if path in self.routes:
            return path
        if path.startswith("/v1/models/"):
            return "/v1/models/{id}"
        return "/page" if path.startswith(PAGE_PREFIX) else "other"
