"""Who may ask: keys, hosts, origins."""

from __future__ import annotations

from typing import Any

import pytest

from fledge.serve.errors import ApiError
from fledge.serve.guard import Guard

KEY = "sk-correct-horse"


def scope(method: str = "POST", path: str = "/v1/models", **headers: str | list[str]) -> dict[str, Any]:
    pairs = []
    for name, value in headers.items():
        for one in value if isinstance(value, list) else [value]:
            pairs.append((name.replace("_", "-").encode(), one.encode("latin-1")))
    return {"type": "http", "method": method, "path": path, "headers": pairs}


def status(guard: Guard, request: dict[str, Any]) -> int:
    try:
        guard.check(request)
    except ApiError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "authorization",
    ["", KEY, f"Bearer  {KEY}", f"Bearer {KEY} ", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer",
     f"Bearer {KEY.upper()}", [f"Bearer {KEY}", f"Bearer {KEY}"], ["Bearer x", f"Bearer {KEY}"], "Bearer \xff"],
)  # fmt: skip
def test_a_wrong_key_is_401(authorization: str | list[str]) -> None:
    guard = Guard("127.0.0.1", KEY)
    assert status(guard, scope(authorization=authorization)) == 401
    assert status(guard, scope(authorization=f"Bearer {KEY}")) == 200
    assert status(guard, scope(authorization=f"bearer {KEY}")) == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/ready", "/page/chat.js", "/metrics", "/version", "/v1/models", "/docs", "/health/", "//health",
     "/nothing", "/page", "/v1/chat/completions"],
)  # fmt: skip
def test_without_a_key_only_the_open_paths_answer(method: str, path: str) -> None:
    is_open = method in ("GET", "HEAD") and path in ("/", "/health", "/ready", "/page/chat.js")
    assert status(Guard("127.0.0.1", KEY), scope(method, path)) == (200 if is_open else 401)
    assert status(Guard("127.0.0.1"), scope(method, path)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "evil.com:8000", "localhost.evil.com", "127.0.0.1.evil.com", "", "[::2]:80", "0.0.0.0", "169.254.1.1"],
)
def test_a_foreign_host_is_refused_on_loopback(host: str) -> None:
    assert status(Guard("127.0.0.1"), scope("GET", "/health", host=host)) == 403
    assert status(Guard("0.0.0.0"), scope("GET", "/health", host=host)) == 200  # meant to be reached by other names


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "[::1]", "my.name:80"])
def test_a_loopback_host_is_answered(host: str) -> None:
    assert status(Guard("127.0.0.1", allowed_hosts=("my.name",)), scope(host=host)) == 200
    assert status(Guard("0.0.0.0", allowed_hosts=("my.name",)), scope(host=host)) == (200 if "my" in host else 403)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://evil.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "http://a]b/"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "https://proxy.name"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site", "origin": "http://127.0.0.1:8000"}, 403),
    ],
)
def test_other_sites_pages_cant_post(headers: dict[str, str], expected: int) -> None:
    assert status(Guard("127.0.0.1"), scope("POST", host="127.0.0.1:8000", **headers)) == expected
    assert status(Guard("127.0.0.1"), scope("GET", host="127.0.0.1:8000", **headers)) == 200


def test_tenants_differ_by_key_and_address_and_tell_neither() -> None:
    names = [
        Guard("127.0.0.1", key).tenant({"type": "http", "client": client})
        for key in ("", KEY, KEY + "2")
        for client in (("10.0.0.1", 1000), ("10.0.0.2", 1000), None)
    ]
    assert len(set(names)) == 9
    assert not any(KEY in name or "10.0.0" in name for name in names)
    again = Guard("127.0.0.1", KEY).tenant({"type": "http", "client": ("10.0.0.1", 2000)})
    assert again == names[3]  # another connection from there
