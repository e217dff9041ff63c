"""The process in which chat templates run: short of memory, files and time, and with nothing in it worth taking.

Started by `jinja_process.py`, with a socket as its standard input and output. It imports the sandbox, bounds itself for
good, tells what it holds, and then answers one request after the other. A request renders one template for several
beginnings of one conversation. Every frame is a length in four bytes and JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError

from fledge.text.jinja_sandbox import CLOSE, OPEN, ChatSandbox, Raised, compile_template, strftime_now

ROOM_BYTES = 40 << 20  # above what the idle process holds
CPU_SECONDS = 3  # of one request: ends a child whose parent is gone
MAX_OUTPUT_CHARACTERS = 2 << 20  # of one request
MAX_COMPILED = 8
WARM_UP = (
    "{% set n = namespace(a=1) %}{% for m in messages %}{% generation %}{{ m.content | trim ~ m | tojson }}"
    "{% endgeneration %}{% endfor %}{% macro f(x) %}{{ x.strip() }}{% endmacro %}{{ f('x') }}"
)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=0)
    environment = ChatSandbox()
    compiled: dict[str, Template] = {}
    request = {"messages": [{"role": "user", "content": "x"}], "jobs": [[1, True]], "context": {}}
    answer({**request, "template": WARM_UP}, environment, compiled)  # whatever is imported late is imported now
    strftime_now("%d %b %Y")
    compiled.clear()
    send(connection, bound())
    while (frame := receive(connection)) is not None:
        allow_cpu()
        reply = answer(json.loads(frame), environment, compiled)
        del frame
        send(connection, reply)
        if reply.get("kind") == "memory":
            return  # what is left of the memory may be in pieces; a fresh process takes over


def bound() -> dict[str, int]:
    """Limit this process for good; the limits as the system reads them back."""
    pages = Path("/proc/self/statm")
    idle, data = 0, 0
    if pages.exists():  # elsewhere (macOS) the address space can't be bounded; the parent's clock still is there
        sizes = [int(word) * resource.getpagesize() for word in pages.read_text().split()]
        idle, data = sizes[0], sizes[5]
        limit(resource.RLIMIT_AS, idle + ROOM_BYTES)
        limit(resource.RLIMIT_DATA, data + ROOM_BYTES)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NOFILE, 3)  # those that are open: no further file, socket or pipe
    address_space = resource.getrlimit(resource.RLIMIT_AS)[1] if idle else 0
    return {"pid": os.getpid(), "idle_bytes": idle, "limit_bytes": address_space}


def limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, value))


def allow_cpu() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def answer(request: dict[str, Any], environment: ChatSandbox, compiled: dict[str, Template]) -> dict[str, Any]:
    """`texts` and `spans`, one for each job; or `kind` (raised, failed, memory, output) and `message`."""
    try:
        source = request["template"]
        if source not in compiled:
            if len(compiled) >= MAX_COMPILED:
                compiled.clear()
            compiled[source] = compile_template(environment, source)
        return render_jobs(compiled[source], request)
    except OutputTooLong:
        return {"kind": "output", "message": f"expected at most {MAX_OUTPUT_CHARACTERS} characters"}
    except MemoryError:
        return {"kind": "memory", "message": f"expected at most {ROOM_BYTES >> 20} MiB"}
    except Raised as error:
        return {"kind": "raised", "message": str(error)[:200]}
    except RecursionError:
        return {"kind": "failed", "message": "calls itself without end"}
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        place = f"line {line}: " if line is not None else ""
        return {"kind": "failed", "message": f"{place}{str(error)[:200] or type(error).__name__}"}
    except Exception as error:  # a template's own mistakes raise whatever Python's operations raise
        return {"kind": "failed", "message": f"{type(error).__name__}: {str(error)[:200]}"}


class OutputTooLong(Exception):
    pass


def render_jobs(template: Template, request: dict[str, Any]) -> dict[str, Any]:
    """Each job is [number of messages, whether to open the assistant's answer]. The first must succeed; a later one, on
    a beginning of the conversation that the template may not take, is None where it doesn't."""
    left = MAX_OUTPUT_CHARACTERS
    texts: list[str | None] = []
    spans: list[list[list[int]]] = []
    for n_messages, generation_prompt in request["jobs"]:
        values = {**request["context"], "messages": request["messages"][:n_messages]}
        try:
            text = rendered(template, {**values, "add_generation_prompt": generation_prompt}, left)
        except (MemoryError, RecursionError, OutputTooLong):
            raise
        except Exception:
            if not texts:
                raise
            texts.append(None)
            spans.append([])
            continue
        left -= len(text)
        plain, marked = without_marks(text)
        texts.append(plain)
        spans.append(marked)
    return {"texts": texts, "spans": spans}


def rendered(template: Template, values: dict[str, Any], most: int) -> str:
    parts: list[str] = []
    for part in template.generate(**values):
        most -= len(part)
        if most < 0:
            raise OutputTooLong
        parts.append(part)
    return "".join(parts)


def without_marks(text: str) -> tuple[str, list[list[int]]]:
    """The text without the marks of `{% generation %}`, and [start, end] of what stood between them."""
    if OPEN not in text:
        return text.replace(CLOSE, ""), []
    parts: list[str] = []
    spans: list[list[int]] = []
    at = 0
    for number, piece in enumerate(text.split(OPEN)):
        inside, closed, outside = piece.partition(CLOSE)
        if number and closed:
            spans.append([at, at + len(inside)])
        inside += outside.replace(CLOSE, "")
        parts.append(inside)
        at += len(inside)
    return "".join(parts), spans


def receive(connection: socket.socket) -> bytes | None:
    """One frame, or None at the end."""
    head = receive_exactly(connection, 4)
    return None if head is None else receive_exactly(connection, int.from_bytes(head, "big"))


def receive_exactly(connection: socket.socket, n_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < n_bytes:
        piece = connection.recv(min(1 << 16, n_bytes - len(data)))
        if not piece:
            return None
        data += piece
    return bytes(data)


def send(connection: socket.socket, reply: dict[str, Any]) -> None:
    data = json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace")
    connection.sendall(len(data).to_bytes(4, "big") + data)
