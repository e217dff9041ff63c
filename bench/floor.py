"""The least that the first token of a streamed answer over HTTP takes on this machine: servers that do nothing.

    python bench/floor.py          their times to first token, and fledge's with an engine that takes none, in turn

`alone` answers each request by the same bytes as soon as it is whole; `behind` first asks another process over a socket
pair, as fledge asks its engine. Neither parses, checks, counts or encodes anything. They are bare asyncio protocols;
client, schedule and requests are those of `python bench/serve.py overhead`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import scenes
from bench.load import open_loop, percentile, poisson_times
from bench.served import Served, served

ROUNDS = 7
QUESTION = 256  # bytes to the process behind and back, about a request's
CHUNK = {"choices": [{"text": "a", "finish_reason": None}]}
END = {"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 1}}


def chunked(*trees: Any) -> bytes:
    frames = [b"data: " + json.dumps(tree).encode() + b"\n\n" for tree in trees]
    return b"".join(b"%x\r\n%b\r\n" % (len(data), data) for data in frames)


ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    + chunked(CHUNK, END)
    + b"0\r\n\r\n"
)


class Bare(asyncio.Protocol):
    """One connection. `ask` is told when a request is whole, and what then answers it."""

    def __init__(self, ask: Any):
        self.ask, self.data = ask, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, gap, body = self.data.partition(b"\r\n\r\n")
        if gap and len(body) >= int(head.rpartition(b"content-length: ")[2].split(b"\r")[0]):
            self.ask(self.answer)

    def answer(self) -> None:
        self.transport.write(ANSWER)
        self.transport.close()


class Behind(asyncio.Protocol):
    """The line to another process: each answer of QUESTION bytes answers the oldest question."""

    def __init__(self) -> None:
        self.waiting: deque[Any] = deque()
        self.n_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def ask(self, answer: Any) -> None:
        self.waiting.append(answer)
        self.transport.write(bytes(QUESTION))

    def data_received(self, data: bytes) -> None:
        self.n_bytes += len(data)
        while self.n_bytes >= QUESTION:
            self.n_bytes -= QUESTION
            self.waiting.popleft()()


def echo(line: socket.socket) -> None:
    """The process behind: what comes goes back."""
    while data := line.recv(1 << 16):
        line.sendall(data)


async def listen(behind: bool) -> None:
    ask: Any = lambda answer: answer()  # noqa: E731
    loop = asyncio.get_running_loop()
    if behind:
        ours, theirs = socket.socketpair()
        if not os.fork():
            ours.close()
            echo(theirs)
            os._exit(0)
        theirs.close()
        _, line = await loop.create_connection(Behind, sock=ours)
        ask = line.ask
    server = await loop.create_server(lambda: Bare(ask), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextmanager
def bare(kind: str) -> Iterator[Served]:
    """A server that does nothing, until the block ends."""
    process = subprocess.Popen([sys.executable, __file__, "--listen", kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Served(process.stdout.readline().strip(), time.perf_counter(), process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def first_tokens(server: Served, n: int, rate: float, seed: int) -> list[float]:
    """Seconds to the first token of `n` requests at `rate` a second, of one token each."""
    send = scenes.sender(server, 32, 1)
    outcomes = asyncio.run(open_loop(send, poisson_times(rate, n, seed)))
    return [one.first for one in outcomes if one.text_times]


def floor(n: int = 60, rate: float = 20.0, rounds: int = ROUNDS) -> dict[str, Any]:
    """Milliseconds to the first token, p50 and p99 of each round's requests: their medians over rounds, in turn."""
    with bare("alone") as alone, bare("behind") as behind, served("stub:delay_ms=0") as fledge:
        servers = {"alone": alone, "behind": behind, "fledge": fledge}
        found: dict[str, list[list[float]]] = {name: [] for name in servers}
        for number in range(rounds):
            for name, server in servers.items():
                found[name].append(first_tokens(server, n, rate, number))
    return {
        name: {
            f"p{p}": round(1000 * statistics.median(percentile(times, p) for times in of_rounds), 2) for p in (50, 99)
        }
        for name, of_rounds in found.items()
    }


if __name__ == "__main__":
    if "--listen" in sys.argv:
        asyncio.run(listen(sys.argv[-1] == "behind"))
    else:
        print(json.dumps(floor()))
