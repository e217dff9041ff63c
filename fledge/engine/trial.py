"""The trial of a grammar: compiled and walked once in a process of its own, which may run short of time and memory.

What a grammar costs can't be read off its text: `multipleOf` of a large prime, say, has that many states.
Whoever wrote it pays with a refusal; the process that serves everybody compiles what has passed. One warm child forks a
process for each trial, so that a trial costs milliseconds. Frames are a length in four bytes and UTF-8.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, NoReturn

import fledge
from fledge.errors import EngineError

CPU_SECONDS = 1.0
WALL_SECONDS = 20  # for a machine with no time to give; CPU_SECONDS is what a grammar runs into
ROOM_BYTES = 48 << 20  # above what the process holds when it has nothing to do
MAX_REASON_BYTES = 4096
BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from fledge.engine.constrain import main; main()"


class Trials:
    """The warm child, as seen from the process that wants to know. Trials wait for each other."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = os.getpid()

    def problem(self, grammar: str) -> str | None:
        """None, or why this grammar can't be used. Raises EngineError when no process can be had."""
        with self.lock:
            for _ in range(2):  # somebody may have killed the child meanwhile
                process = self.alive()
                assert process.stdin is not None and process.stdout is not None
                try:
                    send(process.stdin, grammar.encode())
                    told = receive(process.stdout)
                except OSError:
                    told = b""
                if told:
                    return told.decode("utf-8", "replace").strip() or None
                self.end()
        raise EngineError(
            f"constraint: expected a process for trials, got none; check that {sys.executable} can be run"
        )

    def alive(self) -> subprocess.Popen[bytes]:
        if self.owner != os.getpid():  # after a fork the child is our parent's
            self.process, self.owner = None, os.getpid()
        if self.process is None or self.process.poll() is not None:
            self.end()
            paths = [*filter(None, sys.path), str(Path(fledge.__file__).resolve().parent.parent)]
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, json.dumps(paths)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
                cwd="/",
                process_group=0,
            )
        return self.process

    def end(self) -> None:
        """End the child and wait for it."""
        process, self.process = self.process, None
        if process is None or self.owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # what was not sent when the child died


@functools.cache
def shared_trials() -> Trials:
    """The trials of this program; their process starts with the first and ends with the program."""
    trials = Trials()
    atexit.register(trials.end)
    return trials


def send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(len(data).to_bytes(4, "big") + data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes:
    """One frame; empty at the end of the line."""
    return pipe.read(int.from_bytes(pipe.read(4), "big"))


# --- from here on: the child


def serve(examine: Callable[[str], str]) -> None:
    """Answer trials until the parent is gone: `examine` says of a grammar why it can't be used, or nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while head := sys.stdin.buffer.read(4):
        grammar = sys.stdin.buffer.read(int.from_bytes(head, "big")).decode()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            undergo(grammar, examine, writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read(MAX_REASON_BYTES)
        status = os.waitpid(child, 0)[1]
        send(sys.stdout.buffer, verdict(status, said))


def undergo(grammar: str, examine: Callable[[str], str], writing: int) -> NoReturn:
    """Bound this process for good, examine, tell, and leave."""
    pages = Path("/proc/self/statm")
    if pages.exists():  # elsewhere (macOS) memory can't be bounded; the clock still is there
        held = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM_BYTES, held + ROOM_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_VIRTUAL, CPU_SECONDS)  # its signal ends the process
    signal.alarm(WALL_SECONDS)
    try:
        os.write(writing, examine(grammar).encode()[:MAX_REASON_BYTES])
    except BaseException:
        os._exit(1)
    os._exit(0)


def verdict(status: int, said: bytes) -> bytes:
    """What the parent is told; a byte at least, since an empty frame is the end of the line."""
    if not status:
        return said or b" "
    signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if signal_number == signal.SIGVTALRM:
        return f"its automaton takes more than {CPU_SECONDS:g} s to make".encode()
    if signal_number == signal.SIGALRM:
        return f"its trial was not over within {WALL_SECONDS} s".encode()
    return f"its automaton takes more than {ROOM_BYTES >> 20} MiB".encode()
