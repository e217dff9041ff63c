"""Trials 55, 57, 72, 82 and 84: sizes, what errors may say, keys, logs and figures."""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.serve.raw import connect, exchange, parse, read_all, request
from tests.serve.running import CHAT, RunningServer, error_of, running, wait_until

KEY = "sk-canary-4f9a0c7b"
LIMIT = 1 << 16
CHAT_PATH = "/v1/chat/completions"
LEAKS = re.compile(r"Traceback|File \"|\.py|fledge\.|uvicorn|starlette|0x[0-9a-f]{6,}|/usr|/root|/home|site-packages")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running("stub:text=Fine.&poison=%07", f"max_body_bytes={LIMIT}", "body_seconds=1") as started:
        yield started


@pytest.fixture(scope="module")
def locked() -> Iterator[RunningServer]:
    with running("stub:text=Fine.", f"api_key={KEY}") as started:
        yield started


def error_in(body: bytes) -> dict[str, str]:
    return json.loads(body)["error"]


def test_55_a_body_over_the_limit_is_a_413_that_was_not_read(server: RunningServer) -> None:
    fitting = json.dumps({**CHAT, "x_pad": ""})
    fitting = fitting.replace('"x_pad": ""', '"x_pad": "' + "y" * (LIMIT - len(fitting)) + '"')
    assert exchange(server.url, request(CHAT_PATH, "POST", fitting.encode()))[0] == 200  # exactly the limit
    status, headers, body = exchange(server.url, request(CHAT_PATH, "POST", fitting.encode() + b" "))
    assert (status, error_in(body)["code"]) == (413, "request_too_large")
    assert headers["connection"] == "close"
    began = time.perf_counter()
    claimed = request(CHAT_PATH, "POST", b"{", content_length=str(10**12))
    assert exchange(server.url, claimed)[0] == 413  # by its length alone
    assert time.perf_counter() - began < 3


def test_55_a_chunked_body_without_end_is_cut_at_the_limit(server: RunningServer) -> None:
    head = request(CHAT_PATH, "POST", content_type="application/json", transfer_encoding="chunked")
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    status, _, body = exchange(server.url, head, *[chunk] * 200)
    assert (status, error_in(body)["code"]) == (413, "request_too_large")
    assert process.memory_info().rss - before < 20 << 20


def test_55_a_compressed_body_is_not_unpacked(server: RunningServer) -> None:
    bomb = gzip.compress(b" " * (50 << 20))
    status, _, body = exchange(server.url, request(CHAT_PATH, "POST", bomb, content_encoding="gzip"))
    assert status == 415
    assert "compressed" in error_in(body)["message"]


@pytest.mark.parametrize(
    ("name", "status", "pieces"),
    [
        ("300 headers", 431, [request(**{f"x_{i}": "1" for i in range(300)})]),
        ("one header of 1 MB", 431, [request(x_large="y" * (1 << 20))]),
        ("one header of 1 MB that never ends", 431, [b"GET / HTTP/1.1\r\nx: ", *[b"y" * (1 << 16)] * 16]),
        ("an address of 1 MB", 414, [request("/" + "y" * (1 << 20))]),
        ("an address of 1 MB that never ends", 414, [b"GET /", *[b"y" * (1 << 16)] * 16]),
        ("an address of 20 kB", 414, [request("/?q=" + "y" * 20_000)]),
        ("no HTTP", 400, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"]),
        (
            "two lengths",
            400,
            [b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"],
        ),
        ("no host", 400, [b"GET /health HTTP/1.1\r\n\r\n"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_55_oversized_and_malformed_heads(server: RunningServer, name: str, status: int, pieces: list[bytes]) -> None:
    began = time.perf_counter()
    found, headers, body = exchange(server.url, *pieces)
    assert found == status
    assert set(error_in(body)) == {"message", "type", "param", "code"}
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"].startswith("req_")
    assert headers["connection"] == "close"
    assert time.perf_counter() - began < 5
    assert exchange(server.url, request())[0] == 200  # the control: an ordinary head


def test_69_a_body_that_comes_too_slowly_is_a_408(server: RunningServer) -> None:
    head = request(CHAT_PATH, "POST", b"", content_length="100")
    began = time.perf_counter()
    status, _, body = exchange(server.url, head, *[b" "] * 8, pause=0.25)
    assert (status, error_in(body)["code"]) == (408, "request_timeout")
    assert time.perf_counter() - began < 4


def test_an_answer_reaches_a_caller_who_is_still_sending(server: RunningServer) -> None:
    """Without a lingering close the kernel resets the connection and the 413 is lost."""
    body = b" " * (4 << 20)
    for _ in range(5):
        assert exchange(server.url, request(CHAT_PATH, "POST", body))[0] == 413


def test_57_no_error_tells_anything_of_the_inside(server: RunningServer) -> None:
    bodies = [
        server.client.request(method, path).text
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
        for path in ("/nothing", "/v1/models", "/v1/chat/completions", "/docs", "/openapi.json", "/page/../main.py",
                     "/page/nothing.js", "/page/%2e%2e/main.py", "/v1/models/x", "/%00", "/v1/models/%0d%0ax")
    ]  # fmt: skip
    bodies += [
        server.chat(**fields).text
        for fields in ({"n": 0}, {"seed": 2**70}, {"max_tokens": 10**6}, {"model": "../../etc/passwd"}, {"stop": [""]})
    ]
    poisoned = server.chat(messages=[{"role": "user", "content": "\x07"}])
    assert poisoned.status_code == 500
    bodies.append(poisoned.text)
    with server.client.stream(
        "POST", CHAT_PATH, json={"messages": [{"role": "user", "content": "\x07"}], "stream": True}
    ) as response:
        bodies.append(response.read().decode())
    for body in bodies:
        assert not LEAKS.search(body), body
    assert LEAKS.search('Traceback (most recent call last):\n  File "/usr/lib/fledge/serve/main.py"')  # the control
    assert len(bodies) > 60


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/none", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "//v1/models", 404, "not_found"),
        ("GET", "/page/main.py", 404, "not_found"),
        ("GET", "/page/..%2fmain.py", 404, "not_found"),
    ],
)
def test_57_every_refusal_is_openais_error_object(
    server: RunningServer, method: str, path: str, status: int, code: str
) -> None:
    response = server.client.request(method, path)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    if status == 405:
        assert response.headers["allow"]
    assert "access-control-allow-origin" not in response.headers


def test_57_a_request_that_breaks_the_model_is_a_500_and_others_go_on(server: RunningServer) -> None:
    response = server.chat(messages=[{"role": "user", "content": "a\x07b"}])
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    failure = f'"event": "failure", "request_id": "{response.headers["x-request-id"]}", "message": "engine: '
    wait_until(lambda: failure in server.errors(), 1)
    assert server.chat().status_code == 200


def test_72_every_route_but_the_open_ones_needs_the_key(locked: RunningServer) -> None:
    client = locked.client
    for path in ("/health", "/ready", "/", "/page/chat.js"):
        assert client.get(path).status_code == 200
    for path in ("/metrics", "/version", "/v1/models", "/v1/models/stub", CHAT_PATH, "/nothing", "/docs", "/health/"):
        for method in ("GET", "POST", "OPTIONS", "DELETE", "HEAD"):
            response = client.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
        assert client.get(path, params={"api_key": KEY}).status_code == 401
    right = {"authorization": f"Bearer {KEY}"}
    assert client.get("/v1/models", headers=right).status_code == 200
    assert client.get("/nothing", headers=right).status_code == 404
    assert client.post(CHAT_PATH, json=CHAT, headers=right).status_code == 200
    assert (
        error_of(client.post(CHAT_PATH, json=CHAT, headers={"authorization": "Bearer sk-wrong"}))["code"]
        == "invalid_api_key"
    )


def test_82_logs_hold_no_secret_no_prompt_and_no_raw_control_characters(locked: RunningServer) -> None:
    secret = "my-canary-prompt"
    right = {"authorization": f"Bearer {KEY}", "x-request-id": "evil\tid"}
    body = {"messages": [{"role": "user", "content": secret}], "user": secret}
    assert locked.client.post(f"{CHAT_PATH}?token={secret}", json=body, headers=right).status_code == 200
    locked.client.get(f"/v1/{KEY}", headers=right)
    locked.client.get("/v1/a%0a%1b%5b31mb%e2%80%a8c", headers=right)
    locked.client.get("/v1/sk-proj-abcdefgh12345678", headers=right)
    wait_until(lambda: locked.errors().count("/v1/") >= 4, 1)
    log = locked.errors()
    for forbidden in (secret, KEY, "\x1b", "evil", "sk-proj-abcdefgh", "\u2028"):
        assert forbidden not in log
    lines = [line for line in log.splitlines() if line.startswith("{")]
    assert all(json.loads(line)["request_id"].startswith("req_") for line in lines)
    assert sum("/v1/chat/completions" in line for line in lines) >= 1  # the control: requests are logged
    assert "[redacted]" in log


def test_84_junk_adds_no_series(server: RunningServer) -> None:
    def series() -> int:
        return len([line for line in server.client.get("/metrics").text.splitlines() if not line.startswith("#")])

    server.client.get("/nothing")
    before = series()
    for i in range(50):
        server.client.get(f"/junk/{i}")
        server.client.request(f"JUNK{i}", f"/v1/models/{i}")
        server.chat(model=f"model-{i}", user=f"user-{i}")
    assert series() <= before + 20
    text = server.client.get("/metrics").text
    assert len(text) < 200_000
    assert "junk" not in text.lower()
    assert 'route="other"' in text


def test_85_evil_hosts_and_origins_are_refused(server: RunningServer) -> None:
    for host in ("evil.com", "evil.com:80", "127.0.0.1.evil.com"):
        assert exchange(server.url, request("/", host=host))[0] == 403
        assert exchange(server.url, request(CHAT_PATH, "POST", CHAT, host=host))[0] == 403
    for origin in ("http://evil.com", "null"):
        for method in ("POST", "DELETE", "OPTIONS", "PUT"):
            status, headers, _ = exchange(server.url, request(CHAT_PATH, method, CHAT, origin=origin))
            assert status == 403
            assert not any(name.startswith("access-control") for name in headers)
    assert exchange(server.url, request(CHAT_PATH, "POST", CHAT))[0] == 200


def test_pipelined_requests_are_answered_in_order(server: RunningServer) -> None:
    keep = request("/health").replace(b"connection: close\r\n", b"")
    with connect(server.url) as line:
        line.sendall(keep + request("/nothing").replace(b"connection: close\r\n", b"") + request("/version"))
        data = read_all(line)
    answers = [parse(b"HTTP/1.1 " + part)[0] for part in data.split(b"HTTP/1.1 ")[1:]]
    assert answers == [200, 404, 200]
