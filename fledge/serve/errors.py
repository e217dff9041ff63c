"""OpenAI's error object for everything that goes wrong, and no traceback, path, address or module in it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from starlette.responses import Response

from fledge.errors import CapacityError, EngineError, FledgeError, RequestError

TYPE_OF_STATUS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODE_OF_STATUS = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    411: "length_required",
    413: "request_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    431: "headers_too_large",
    500: "internal_error",
}
RETRY_AFTER_SECONDS = 1


class ApiError(FledgeError):
    """An answer of `status` with OpenAI's error object. `message` is sent to the caller as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code if code is not None else CODE_OF_STATUS.get(status)
        self.headers = dict(headers)

    @property
    def type(self) -> str:
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return TYPE_OF_STATUS.get(self.status, default)

    def body(self) -> dict[str, dict[str, str | None]]:
        """`{"error": {message, type, param, code}}`, the four keys that OpenAI's schema requires."""
        return {"error": {"message": str(self), "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def unavailable(
    message: str, code: str, retry_after_seconds: int = RETRY_AFTER_SECONDS, close: bool = False
) -> ApiError:
    """503 with an integer `Retry-After`; `close` ends the connection too, so that a balancer picks another server."""
    headers = [("retry-after", str(max(1, retry_after_seconds)))]
    if close:
        headers.append(("connection", "close"))
    return ApiError(503, message, code=code, headers=headers)


def to_api_error(error: BaseException) -> ApiError:
    """What the caller may know about `error`. Only a RequestError's message was written for the caller."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), error.param, error.code)
    if isinstance(error, CapacityError):
        return unavailable("The server is full; try again shortly.", "overloaded")
    # A request that the engine failed on may be what broke it: OpenAI's clients would send a 500 twice more.
    headers = [("x-should-retry", "false")] if isinstance(error, EngineError) else []
    message = "The server failed to answer this request. Quote the x-request-id header when you report it."
    return ApiError(500, message, headers=headers)
