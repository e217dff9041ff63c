"""The ASGI application: Starlette routes to our handlers, failures are OpenAI's error object, the gate is outside."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fledge.errors import FledgeError
from fledge.serve.access import AccessLog
from fledge.serve.errors import ApiError, to_api_error
from fledge.serve.gate import RECORD, Gate
from fledge.serve.guard import Guard
from fledge.serve.page import page_file
from fledge.serve.pair_verbs import RERANK, SCORE
from fledge.serve.routes import Routes
from fledge.serve.service import Service
from fledge.serve.task_verbs import FILL_MASK, MULTIPLE_CHOICE, QUESTION_ANSWERING, TOKEN_CLASSIFICATION
from fledge.serve.vector_routes import CLASSIFY, EMBEDDINGS, VectorRoutes


def new_app(service: Service, guard: Guard, log: AccessLog) -> Gate:
    """The whole application of one service."""
    routes = Routes(service, guard.tenant, log)
    vectors = VectorRoutes(routes)
    posts = {
        "/v1/chat/completions": routes.chat_completions,
        "/v1/completions": routes.completions,
        "/v1/embeddings": vectors.handler(EMBEDDINGS),
        "/classify": vectors.handler(CLASSIFY),
        **dict.fromkeys(("/score", "/v1/score"), vectors.handler(SCORE)),
        **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), vectors.handler(RERANK)),
        "/fill-mask": vectors.handler(FILL_MASK),
        "/token-classification": vectors.handler(TOKEN_CLASSIFICATION),
        "/question-answering": vectors.handler(QUESTION_ANSWERING),
        "/multiple-choice": vectors.handler(MULTIPLE_CHOICE),
        "/v1/load_lora_adapter": routes.load_adapter,
        "/v1/unload_lora_adapter": routes.unload_adapter,
    }
    gets = {
        "/health": routes.health,
        "/ready": routes.ready,
        "/metrics": routes.metrics,
        "/version": routes.version,
        "/v1/models": routes.models,
        "/v1/models/{name:path}": routes.model,
        "/": page,
        "/page/{name}": page,
    }
    known = [Route(path, answer, methods=["POST"]) for path, answer in posts.items()]
    known += [Route(path, answer, methods=["GET"]) for path, answer in gets.items()]

    async def on_error(request: Request, error: Exception) -> Response:
        """Our own errors as they are, anything else as a 500 that says nothing."""
        answer, record = to_api_error(error), request.scope[RECORD]
        if answer.status == 500:
            log.failure(record.id, error)
            record.failure_logged = True
        return answer.response()

    handlers: Any = {FledgeError: on_error, HTTPException: on_http_error, Exception: on_error}
    app = Starlette(routes=known, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Gate(app, guard, service.metrics, log, (*posts, *gets))


async def page(request: Request) -> Response:
    return page_file(request.path_params.get("name", "chat.html"))


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    messages = {404: "There is no such route.", 405: "This route does not answer to that method."}
    headers = dict(error.headers or {})
    return ApiError(error.status_code, messages.get(error.status_code, "Refused."), headers=headers.items()).response()
