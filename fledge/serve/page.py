"""The chat page's files, read once from the package, under a policy that lets nothing run or load but them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from starlette.responses import Response

from fledge.serve.errors import ApiError

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGE_NAMES = ("chat.html", "chat.css", "chat.js", "view.js", "store.js", "markdown.js", "stream.js", "icon.svg")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-cache",
}


def page_file(name: str) -> Response:
    """One of the page's files. Raises ApiError 404 for any other name."""
    if name not in PAGE_NAMES:
        raise ApiError(404, "There is no such route.")
    return Response(read(name), headers=HEADERS, media_type=MEDIA_TYPES[name.rpartition(".")[2]])


@cache
def read(name: str) -> bytes:
    return files("fledge.serve").joinpath("pages", name).read_bytes()
