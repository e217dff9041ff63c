"""A `fledge serve` of its own for a measurement: started, asked for its figures, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120.0


class Served:
    """The server's address and figures. `started` is when its process was, by time.perf_counter()."""

    def __init__(self, url: str, started: float, process: subprocess.Popen[str]):
        self.url, self.started, self.process = url, started, process

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def wait_ready(self) -> None:
        while self.get("/ready")[0] != 200:
            if self.process.poll() is not None or time.perf_counter() - self.started > START_SECONDS:
                raise SystemExit(f"serve: expected it ready within {START_SECONDS:g} s, got exit {self.process.poll()}")
            time.sleep(0.01)

    def figures(self) -> dict[str, float]:
        """/metrics without its comments; samples of one name with several labels are added up, buckets left out."""
        found: dict[str, float] = {}
        for line in self.get("/metrics")[1].splitlines():
            name, _, value = line.rpartition(" ")
            name = name.split("{")[0]
            if name and not line.startswith("#") and not name.endswith("_bucket"):
                found[name] = found.get(name, 0.0) + float(value)
        return found


@contextmanager
def served(model: str, *words: str, core: str = "") -> Iterator[Served]:
    """A server on `model` that is ready, until the block ends. `words`: key=value of the command line; `core`: the
    processor cores it may use, as taskset has them."""
    command = [sys.executable, "-m", "fledge", "serve", model, "--port", "0", "--json", "access_log=off", *words]
    command = ["taskset", "-c", core, *command] if core else command
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        server = Served(json.loads(line)["url"], started, process)
        server.wait_ready()
        yield server
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
