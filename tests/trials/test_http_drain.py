"""Trial 68: SIGTERM drains. New work is refused, running answers end, nothing is left; a second signal hurries."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest

from tests.serve.running import CHAT, RunningServer, finish_reasons, frames_of, running, wait_until

CHAT_PATH = "/v1/chat/completions"
SLOW = "stub:delay_ms=40"
BRIEF, LONG = 35, 200  # a second and a half; longer than any of these tests waits


class Streaming(threading.Thread):
    """One stream in the background: its frames as they came."""

    def __init__(self, server: RunningServer, tokens: int):
        super().__init__()
        self.url = server.url
        self.tokens = tokens
        self.frames: list[str] = []

    def run(self) -> None:
        body = {**CHAT, "stream": True, "ignore_eos": True, "max_tokens": self.tokens}
        with httpx.stream("POST", self.url + CHAT_PATH, json=body, trust_env=False, timeout=20) as response:
            for frame in frames_of(response):
                self.frames.append(frame)


@contextmanager
def under_load(tokens: int, *words: str) -> Iterator[tuple[RunningServer, Streaming, list[psutil.Process]]]:
    with running(SLOW, *words) as server:
        stream = Streaming(server, tokens)
        stream.start()
        wait_until(lambda: len(stream.frames) > 3, 5)
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert children
        yield server, stream, children
        stream.join(10)
        assert not stream.is_alive()
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        assert "Traceback" not in server.errors()


def new_work(server: RunningServer) -> int:
    """The status of a new request; 0 when the connection is refused."""
    try:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=5) as client:
            response = client.post(CHAT_PATH, json={**CHAT, "max_tokens": 1})
    except httpx.ConnectError:
        return 0
    if response.status_code == 503:
        assert response.json()["error"]["code"] == "draining"
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["connection"] == "close"
    return response.status_code


def test_68_running_answers_end_and_new_work_is_refused() -> None:
    with under_load(BRIEF, "drain_seconds=30") as (server, stream, _):
        assert new_work(server) == 200  # the control
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: new_work(server) in (0, 503), 0.5)
        assert stream.is_alive()
        assert server.process.wait(15) == 0
        stream.join(5)
        assert stream.frames[-1] == "[DONE]"
        assert finish_reasons([json.loads(frame) for frame in stream.frames[:-1]]) == ["length"]


@pytest.mark.parametrize("seconds", ["0", "0.5"])
def test_68_what_takes_too_long_is_cut_off(seconds: str) -> None:
    with under_load(LONG, f"drain_seconds={seconds}") as (server, stream, _):
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 4 + float(seconds)
        stream.join(5)
        assert json.loads(stream.frames[-1])["error"]["code"] == "draining"


def test_68_a_second_signal_ends_the_wait() -> None:
    with under_load(LONG, "drain_seconds=30") as (server, stream, _):
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: new_work(server) in (0, 503), 1)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 4
        stream.join(5)
        assert json.loads(stream.frames[-1])["error"]["code"] == "draining"


def test_68_a_signal_while_the_model_loads_ends_at_once() -> None:
    with running("stub:load_ms=20000", ready=False) as server:
        wait_until(lambda: len(psutil.Process(server.process.pid).children()) == 1, 5)
        engine = server.engine()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(6) == 0
        wait_until(lambda: not engine.is_running(), 2)


def test_68_a_killed_server_leaves_no_engine() -> None:
    with running(SLOW) as server:
        engine = server.engine()
        server.process.kill()
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, 3)


def test_the_first_line_is_the_address_and_the_last_the_result() -> None:
    with running("stub:") as server:
        assert server.url.startswith("http://127.0.0.1:")
        server.chat(max_tokens=1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.stdout is not None
        *_, last = server.process.stdout.read().splitlines()
        assert json.loads(last)["url"] == server.url
        assert json.loads(last)["requests"] >= 1
        assert server.process.wait(5) == 0
