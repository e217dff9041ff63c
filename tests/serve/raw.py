"""Bytes on a socket, for what no HTTP client would send."""

from __future__ import annotations

import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname and parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=20)


def exchange(url: str, *pieces: bytes, pause: float = 0.0) -> tuple[int, dict[str, str], bytes]:
    """Send the pieces, read to the end of the connection: status, headers (lower case), body. Status 0: no answer."""
    with connect(url) as line:
        for piece in pieces:
            try:
                line.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(pause)
        data = read_all(line)
    return parse(data)


def read_all(line: socket.socket) -> bytes:
    data = bytearray()
    try:
        while piece := line.recv(1 << 20):
            data += piece
    except ConnectionResetError:
        pass
    return bytes(data)


def read_to(line: socket.socket, ending: bytes) -> bytes:
    """What comes, up to `ending`."""
    data = b""
    while not data.endswith(ending) and (piece := line.recv(1)):
        data += piece
    return data


def parse(data: bytes) -> tuple[int, dict[str, str], bytes]:
    if not data:
        return 0, {}, b""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    return int(first.split(" ")[1]), {name.lower(): value for name, _, value in pairs}, body


def request(path: str = "/health", method: str = "GET", body: Any = None, **headers: str) -> bytes:
    """The bytes of a request that closes its connection."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"host": "localhost", "connection": "close"}
    if body is not None:
        lines |= {"content-type": "application/json", "content-length": str(len(data))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + data
