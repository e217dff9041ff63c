"""A real `fledge label` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.serve.running import ROOT


class Labelling:
    """The process, the address that it printed, and a client on it."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process = process
        self.url = url
        self.client = httpx.Client(base_url=url.partition("#")[0].rstrip("/"), timeout=20, trust_env=False)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit code and what it printed after the address."""
        self.process.send_signal(number)
        out, _ = self.process.communicate(timeout=20)
        return self.process.returncode, out


@contextmanager
def labelling(pairs: Path, out: Path, *words: str) -> Iterator[Labelling]:
    """A server on a port of its own until the block ends. `words` are further key=value words."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("FLEDGE_API_KEY", None)
    command = [sys.executable, "-m", "fledge", "label", str(pairs), f"out={out}", "--port", "0", "--json", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    )
    running = None
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        running = Labelling(process, json.loads(line)["url"])
        yield running
    finally:
        if running is not None:
            running.client.close()
        if process.poll() is None:
            process.kill()
        process.communicate()
