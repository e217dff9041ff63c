"""The labelling page's ASGI application: routes around a desk, behind the same gate as `fledge serve`'s."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fledge.errors import FledgeError
from fledge.label.ballots import read_ballot, read_name, read_number, refuse_unknown
from fledge.label.desk import Conflict, Desk, clean_name
from fledge.label.page import label_file
from fledge.label.report import figures
from fledge.serve.access import AccessLog
from fledge.serve.app import on_http_error
from fledge.serve.body import read_json
from fledge.serve.errors import ApiError, to_api_error
from fledge.serve.gate import RECORD, Gate
from fledge.serve.guard import Guard
from fledge.serve.routes import json_response

MAX_BODY_BYTES = 64 << 10
BODY_SECONDS = 12.0


class Uncounted:
    """Nobody asks this server for figures of its requests."""

    def count_answer(self, route: str, method: str, status: int) -> None:
        pass


class Routes:
    """The handlers of one desk. `first_name`: the name that the page begins with."""

    def __init__(self, desk: Desk, reasons: tuple[str, ...], first_name: str):
        self.desk = desk
        self.reasons = reasons
        self.first_name = first_name

    async def about(self, request: Request) -> Response:
        """What the page has to know before anybody has a name."""
        return answer({"annotator": self.first_name, "reasons": list(self.reasons), "items": self.desk.n_items})

    async def state(self, request: Request) -> Response:
        return await done(self.desk.state, clean_name(request.query_params.get("annotator", "")))

    async def vote(self, request: Request) -> Response:
        return await done(self.desk.vote, read_ballot(await body(request), self.reasons))

    async def undo(self, request: Request) -> Response:
        tree = await body(request)
        refuse_unknown(tree, frozenset({"annotator", "vote"}))
        return await done(self.desk.undo, read_name(tree), read_number(tree, "vote"))

    async def again(self, request: Request) -> Response:
        tree = await body(request)
        refuse_unknown(tree, frozenset({"annotator"}))
        return await done(self.desk.again, read_name(tree))

    async def progress(self, request: Request) -> Response:
        return await done(self.figures)

    def figures(self) -> dict[str, Any]:
        with self.desk.lock:
            votes = self.desk.store.votes()
        return figures(votes, self.desk.n_items)  # nobody's vote waits for it


async def body(request: Request) -> dict[str, Any]:
    return await read_json(request, MAX_BODY_BYTES, BODY_SECONDS)


async def done(work: Callable[..., dict[str, Any]], *values: Any) -> Response:
    """A database waits for its disk, so a thread does the work. What was begun is ended, whoever leaves meanwhile."""
    return answer(await asyncio.shield(asyncio.to_thread(work, *values)))


def answer(value: dict[str, Any]) -> Response:
    return json_response(value, headers={"cache-control": "no-store"})


async def page(request: Request) -> Response:
    return label_file(request.path_params.get("name", "label.html"))


async def health(request: Request) -> Response:
    return json_response({"status": "ok"})


def new_app(desk: Desk, reasons: tuple[str, ...], first_name: str, guard: Guard, log: AccessLog) -> Gate:
    """The whole application."""
    routes = Routes(desk, reasons, first_name)
    gets = (
        ("/", page),
        ("/page/{name}", page),
        ("/health", health),
        ("/api/about", routes.about),
        ("/api/state", routes.state),
        ("/api/progress", routes.progress),
    )
    posts = (("/api/vote", routes.vote), ("/api/undo", routes.undo), ("/api/again", routes.again))

    async def on_error(request: Request, error: Exception) -> Response:
        told = error_of(error)
        record = request.scope[RECORD]
        if told.status == 500:
            log.failure(record.id, error)
            record.failure_logged = True
        return told.response()

    app = Starlette(
        routes=[
            *(Route(path, handler, methods=["GET"]) for path, handler in gets),
            *(Route(path, handler, methods=["POST"]) for path, handler in posts),
        ],
        exception_handlers={FledgeError: on_error, HTTPException: on_http_error, Exception: on_error},
    )
    app.router.redirect_slashes = False
    return Gate(app, guard, Uncounted(), log)


def error_of(error: Exception) -> ApiError:
    if isinstance(error, Conflict):
        return ApiError(409, str(error), error.param, error.code)
    return to_api_error(error)
