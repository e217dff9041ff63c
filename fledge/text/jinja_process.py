"""`TemplateProcess`: the one warm child in which chat templates run, as seen from the process that needs their text.

A template that takes too long, or whose child dies, costs its own request at most `WALL_SECONDS`: the child is killed,
waited for, and a new one is started at once. Requests wait for each other; call from a thread where that matters.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fledge
from fledge.errors import FledgeError

WALL_SECONDS = 1.5
ALL_SECONDS = 1.8  # of a request from its turn on, the start of a child included
LEAST_SECONDS = 0.5  # that a template gets, however long its child took to start
AT_ONCE_SECONDS = 0.3  # a child that dies this soon is tried once more
START_SECONDS = 20.0
MAX_REQUEST_BYTES = 1 << 20
MAX_REPLY_BYTES = 16 << 20
ROOM_BYTES = 64 << 20  # what a child may take above what it holds when idle; checked before it gets any work
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fledge.text.jinja_child import main; main()"


class TemplateProcess:
    """`render` sends one request to the child and gives its reply; a child that fails is replaced."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None
        self.facts: dict[str, int] = {}
        self.owner = os.getpid()
        self.n_started = 0

    def render(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's reply (`jinja_child.answer`), or `kind` "time", "died" or "size" and a `message`."""
        data = json.dumps(request, ensure_ascii=False).encode("utf-8", "replace")
        if len(data) > MAX_REQUEST_BYTES:
            return {"kind": "size", "message": f"expected at most {MAX_REQUEST_BYTES} bytes, got {len(data)}"}
        with self.lock:
            began = time.monotonic()
            reply = self.attempt(data, began)
            if reply.get("kind") == "died" and time.monotonic() - began < AT_ONCE_SECONDS:
                reply = self.attempt(data, began)  # somebody may have killed it before it got this request
            return reply

    def attempt(self, data: bytes, began: float) -> dict[str, Any]:
        self.make_ready()
        assert self.connection is not None
        left = ALL_SECONDS - (time.monotonic() - began)
        seconds = min(WALL_SECONDS, max(LEAST_SECONDS, left))
        try:
            reply = exchange(self.connection, data, seconds)
        except TimeoutError:
            reply = {"kind": "time", "message": f"expected it done within {seconds:.3g} s"}
        except (OSError, ValueError):
            reply = {"kind": "died", "message": "its process ended: out of memory, or worse"}
        if reply.get("kind") in ("time", "died", "memory"):
            self.end()
            self.start()
        return reply

    def make_ready(self) -> None:
        """A child that has said what its limits are. Raises FledgeError if none can be had."""
        if self.owner != os.getpid():  # after a fork the child is our parent's
            self.process = self.connection = None
            self.owner = os.getpid()
        if self.process is not None and self.process.poll() is not None:
            self.end()
        if self.process is None:
            self.start()
        if not self.facts:
            assert self.connection is not None
            try:
                self.facts = exchange(self.connection, None, START_SECONDS)
            except (OSError, ValueError) as error:
                self.end()
                raise FledgeError(
                    f"chat template: expected its process within {START_SECONDS:g} s, got {type(error).__name__}; "
                    f"check that {sys.executable} can be run again"
                ) from None
            room = self.facts["limit_bytes"] - self.facts["idle_bytes"]
            if self.facts["idle_bytes"] and not 0 < room <= ROOM_BYTES:
                self.end()
                raise FledgeError(f"chat template: expected a process bounded to {ROOM_BYTES} bytes, got {room}")

    def start(self) -> None:
        """Start a child without waiting for it. It gets no environment, so nothing secret is in it."""
        ours, theirs = socket.socketpair()
        home = str(Path(fledge.__file__).resolve().parent.parent)
        paths = [path for path in sys.path if path] + [home]
        environment = {"LANG": "C.UTF-8", **{key: os.environ[key] for key in ("TZ",) if key in os.environ}}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, json.dumps(paths)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env=environment,
                cwd="/",
                process_group=0,
            )
        self.connection = ours
        self.facts = {}
        self.n_started += 1

    def end(self) -> None:
        """Kill the child and wait for it, so that no zombie stays."""
        if self.connection is not None:
            self.connection.close()
        if self.process is not None and self.owner == os.getpid():
            self.process.kill()
            self.process.wait()
        self.process = self.connection = None
        self.facts = {}

    def close(self) -> None:
        """End the child; the next `render` starts another."""
        with self.lock:
            self.end()


@functools.cache
def shared_process() -> TemplateProcess:
    """The process that every template of this program shares; started by its first request, ended with the program."""
    process = TemplateProcess()
    atexit.register(process.end)
    return process


def exchange(connection: socket.socket, data: bytes | None, seconds: float) -> dict[str, Any]:
    """Send a frame (unless None), and the frame that comes back. Raises TimeoutError, OSError or ValueError."""
    deadline = time.monotonic() + seconds
    if data is not None:
        connection.settimeout(seconds)
        connection.sendall(len(data).to_bytes(4, "big") + data)
    size = int.from_bytes(receive(connection, 4, deadline), "big")
    if size > MAX_REPLY_BYTES:
        raise ValueError("reply too long")
    reply = json.loads(receive(connection, size, deadline))
    if not isinstance(reply, dict):
        raise ValueError("reply is no object")
    return reply


def receive(connection: socket.socket, n_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < n_bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        piece = connection.recv(n_bytes - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return bytes(data)
