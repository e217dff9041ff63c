"""A real `fledge serve` in a process of its own, or the protocol alone in a thread, and what tests do with them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn

from fledge.serve import front

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0  # two busy cores import torch slowly

KEY = "sk-for-these-tests"
TEXT = "Hello there, friend. All is well."
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


class RunningServer:
    """The process, its address and a client on it. `errors()` is its standard error so far."""

    def __init__(self, process: subprocess.Popen[str], url: str, error_file: Path):
        self.process = process
        self.url = url
        self.error_file = error_file
        self.client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def chat(self, **fields: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", {**CHAT, **fields})

    def complete(self, prompt: Any = "Hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Every chunk of a stream that must end well."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as response:
            assert response.status_code == 200, response.read()
            frames = list(frames_of(response))
        assert frames[-1] == "[DONE]"
        return [json.loads(data) for data in frames[:-1]]

    def metric(self, name: str) -> float:
        """The sum of a metric's samples (over its labels)."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def errors(self) -> str:
        return self.error_file.read_text(encoding="utf-8")

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        wait_until(lambda: self.client.get("/ready").status_code == 200, seconds)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        (child,) = psutil.Process(self.process.pid).children()
        return child

    def stop(self, seconds: float = 10) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def running(
    model: str = f"stub:text={TEXT}", *words: str, ready: bool = True, environment: dict[str, str] | None = None
) -> Iterator[RunningServer]:
    """A server on `model` until the block ends. `words` are further key=value words of the command line."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    environment.pop("FLEDGE_API_KEY", None)
    with tempfile.TemporaryDirectory() as folder:
        error_file = Path(folder) / "stderr"
        with error_file.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "fledge", "serve", model, "--port", "0", "--json", "drain_seconds=5", *words],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
            )
        server: RunningServer | None = None
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "url" in json.loads(line or "{}"), error_file.read_text()
            server = RunningServer(process, json.loads(line)["url"], error_file)
            if ready:
                server.wait_ready()
            yield server
        finally:
            if server is not None:
                server.client.close()
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a server of `app` in a thread."""
    options = {"ws": "none", "lifespan": "off", "log_config": None, "log_level": "critical", "loop": "asyncio"}
    config = uvicorn.Config(
        app, port=0, http=front.FrontProtocol, h11_max_incomplete_event_size=front.MAX_HEADER_BYTES,
        timeout_graceful_shutdown=1, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def frames_of(response: httpx.Response) -> Iterator[str]:
    """The data of server-sent events, checked for their form: each one line and an empty one."""
    rest = ""
    for text in response.iter_text():
        rest += text
        *frames, rest = rest.split("\n\n")
        for frame in frames:
            assert "\n" not in frame
            if not frame.startswith(":"):
                assert frame.startswith("data: "), frame
                yield frame.removeprefix("data: ")
    assert rest == ""


def joined(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice of a stream, chat or completion."""
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in found)


def finish_reasons(chunks: list[dict[str, Any]], index: int = 0) -> list[str]:
    found = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return [choice["finish_reason"] for choice in found if choice["finish_reason"] is not None]


def wait_until(holds: Callable[[], bool], seconds: float) -> float:
    """Seconds until `holds()`; fails after `seconds`."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds, f"not so after {seconds} s"
        time.sleep(0.02)
    return time.monotonic() - began


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error object, its form checked: the four keys, a request id, JSON."""
    assert response.headers["content-type"] == "application/json", response.text
    assert response.headers["x-request-id"].startswith("req_")
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    return error
