"""Code that a model wrote, run against tests in a process that can do nothing but compute. Imports no torch.

The child gets no environment, an empty folder, and a filter of system calls (seccomp) that allows computing, memory and
reading files: no socket, no further process or thread, no signal to another, no writing. Where such a filter can't be
had nothing is run.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import fledge
from fledge.errors import ConfigError

BOOT = "import json, sys; sys.path.append(sys.argv[1]); from fledge.align.sandbox_child import main; main()"
START_SECONDS = 5.0  # of the clock, for the interpreter itself, on a busy machine
MOST_BYTES = 1 << 20  # of code and tests


@dataclass(frozen=True)
class Limits:
    """Seconds of the processor and, beside the start, of the clock; bytes of address space."""

    seconds: float = 5.0
    memory_bytes: int = 256 << 20


@dataclass(frozen=True)
class Verdict:
    """`outcome`: passed, failed (it raised, or a test did), time, died (memory, a forbidden call, its own end) or
    refused (the sandbox can't be had); `detail`: more of it."""

    outcome: str
    detail: str = ""


def passes(code: str, tests: str, limits: Limits | None = None) -> bool:
    """Whether `tests`, run after `code` in one module, raise nothing. Raises ConfigError without a sandbox."""
    check_sandbox()
    return run(code, tests, limits).outcome == "passed"


@functools.cache
def check_sandbox() -> None:
    """Raises ConfigError where code can't be bounded on this machine."""
    verdict = run("", "", Limits())
    if verdict.outcome != "passed":
        raise ConfigError(
            f"sandbox: expected seccomp on Linux (x86_64 or aarch64) to bound the code that answers hold, got "
            f"{verdict.outcome} ({verdict.detail}); leave rewards of kind code out"
        )


def run(code: str, tests: str, limits: Limits | None = None) -> Verdict:
    """Run code and tests in a fresh child, which is gone with everything it started when this returns."""
    limits = limits or Limits()
    if len(code) + len(tests) > MOST_BYTES:
        return Verdict("failed", f"expected at most {MOST_BYTES} characters")
    word = secrets.token_hex(16)
    request = json.dumps({"code": code, "tests": tests, "word": word, **asdict(limits)}).encode()
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory(prefix="fledge-sandbox-") as folder:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", BOOT, str(Path(fledge.__file__).resolve().parent.parent)],
                stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.DEVNULL, env={"LANG": "C.UTF-8"}, cwd=folder,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(writing)
        try:
            said = exchange(process, request, reading, limits.seconds + START_SECONDS)
        finally:
            os.close(reading)
            end(process)
    return judged(said, word, process.returncode)


def exchange(process: subprocess.Popen[bytes], request: bytes, reading: int, seconds: float) -> bytes | None:
    """The child's last words; None where it took too long."""
    until = time.monotonic() + seconds
    assert process.stdin is not None
    try:
        process.stdin.write(request)
        process.stdin.close()
    except OSError:
        return b""
    said = b""
    while len(said) < 4096:
        ready, _, _ = select.select([reading], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return None
        piece = os.read(reading, 4096)
        if not piece:
            break
        said += piece
    return said


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child's whole session and wait for it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


def judged(said: bytes | None, word: str, code: int | None) -> Verdict:
    if said is None:
        return Verdict("time", "expected it done in time")
    try:
        verdict = json.loads(said)
        if verdict["word"] == word:
            return Verdict(str(verdict["outcome"]), str(verdict["detail"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        pass  # what the answer's own code wrote, if anything
    return Verdict("time" if code == -signal.SIGXCPU else "died", f"its process ended ({code})")
