"""The ASGI application: FastAPI's routing around our handlers, failures as OpenAI's error object, the gate outside."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from fledge.errors import FledgeError
from fledge.serve.access import AccessLog
from fledge.serve.errors import ApiError, to_api_error
from fledge.serve.gate import RECORD, Gate
from fledge.serve.guard import Guard
from fledge.serve.page import page_file
from fledge.serve.routes import Routes
from fledge.serve.service import Service
from fledge.serve.vector_routes import VectorRoutes


def new_app(service: Service, guard: Guard, log: AccessLog) -> Gate:
    """The whole application of one service."""
    routes = Routes(service, guard.tenant, log)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.router.add_route("/v1/chat/completions", routes.chat_completions, methods=["POST"])
    app.router.add_route("/v1/completions", routes.completions, methods=["POST"])
    app.router.add_route("/v1/load_lora_adapter", routes.load_adapter, methods=["POST"])
    app.router.add_route("/v1/unload_lora_adapter", routes.unload_adapter, methods=["POST"])
    vectors = VectorRoutes(routes)
    app.router.add_route("/v1/embeddings", vectors.embeddings, methods=["POST"])
    app.router.add_route("/classify", vectors.classify, methods=["POST"])
    for path, answer in (
        ("/health", routes.health),
        ("/ready", routes.ready),
        ("/metrics", routes.metrics),
        ("/version", routes.version),
        ("/v1/models", routes.models),
        ("/v1/models/{name:path}", routes.model),
        ("/", page),
        ("/page/{name}", page),
    ):
        app.router.add_route(path, answer, methods=["GET"])

    async def on_error(request: Request, error: Exception) -> Response:
        """Our own errors as they are, anything else as a 500 that says nothing."""
        answer, record = to_api_error(error), request.scope[RECORD]
        if answer.status == 500:
            log.failure(record.id, error)
            record.failure_logged = True
        return answer.response()

    app.add_exception_handler(FledgeError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_error)
    return Gate(app, guard, service.metrics, log)


async def page(request: Request) -> Response:
    return page_file(request.path_params.get("name", "chat.html"))


async def on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: 404 and 405."""
    assert isinstance(error, HTTPException)
    messages = {404: "There is no such route.", 405: "This route does not answer to that method."}
    headers = dict(error.headers or {})
    return ApiError(error.status_code, messages.get(error.status_code, "Refused."), headers=headers.items()).response()
