"""Who may ask: the API key, the Host allow-list against DNS rebinding, no requests from other sites' pages."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import Scope

from fledge.serve.errors import ApiError

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
PAGE_PREFIX = "/page/"
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks every request before any route sees it."""

    def __init__(self, host: str, api_key: str = "", allowed_hosts: Iterable[str] = ()):
        extra = {name.lower().strip("[]") for name in allowed_hosts}
        self.allowed_hosts: frozenset[str] | None = None
        if is_loopback(host):
            self.allowed_hosts = LOOPBACK_NAMES | {host.strip("[]")} | extra
        elif extra:
            self.allowed_hosts = frozenset(extra)
        self.key_digest = hashlib.sha256(api_key.encode()).digest() if api_key else None

    def check(self, scope: Scope) -> None:
        """Raise ApiError 401 or 403."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.check_host(values(headers, b"host"))
        if scope["method"] not in ("GET", "HEAD"):
            self.check_origin(headers)
        if not self.is_open(scope):
            self.check_key(values(headers, b"authorization"))

    def tenant(self, scope: Scope) -> str:
        """Whose request this is: one name for each key and address that it comes from, and neither can be read from it.
        Callers behind one proxy are one tenant."""
        host = (scope.get("client") or ("",))[0]
        return hashlib.sha256(b"tenant:" + (self.key_digest or b"") + host.encode()).hexdigest()[:16]

    def is_open(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(PAGE_PREFIX))

    def check_host(self, hosts: list[str]) -> None:
        if self.allowed_hosts is None or not hosts:
            return
        if host_name(hosts[0]) not in self.allowed_hosts:
            raise ApiError(403, "This server does not answer to that Host; see allowed_hosts.", code="host_not_allowed")

    def check_origin(self, headers: list[tuple[bytes, bytes]]) -> None:
        site, origin = values(headers, b"sec-fetch-site"), values(headers, b"origin")
        if site:
            foreign = site[0] not in ("same-origin", "none")
        elif origin:
            host = values(headers, b"host")
            foreign = not host or not host[0] or netloc_of(origin[0]) != host[0].lower()
        else:
            return
        if foreign:
            raise ApiError(403, "Requests from other sites' pages are not accepted.", code="origin_not_allowed")

    def check_key(self, given: list[str]) -> None:
        if self.key_digest is None:
            return
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        same = hmac.compare_digest(digest, self.key_digest)
        if scheme.lower() != "bearer" or not same:
            message = "Incorrect API key." if given else "No API key; send the header Authorization: Bearer KEY."
            raise ApiError(401, message, code="invalid_api_key", headers=[("www-authenticate", "Bearer")])


def values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def netloc_of(origin: str) -> str:
    """Name and port of an Origin header, in lower case; empty for one that is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def host_name(host: str) -> str:
    """The name in a Host header, without port or brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
