"""A tiny training run through the command line: what the training trials share.

Commands run in real processes, forked from a server that has imported torch once: signals, kills and exit codes are
real, and a start costs milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! 0123456789\n"
MODEL = {"family": "llama", "width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "context_tokens": 32}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["torch.distributed.fsdp", "fledge.recipes.pretrain", "fledge.recipes.sft", "fledge.cli.main", "fledge.evals.run"]
)


def write_config(folder: Path, run_dir: str = "run", model: dict[str, Any] | None = None, **train: Any) -> Path:
    """A config over a small text; `model` replaces the model's group, `train` keys override."""
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("".join(f"{i}. {TEXT[i % 40 :]}" for i in range(300)), encoding="utf-8")
    config = {
        "model": model or MODEL,
        "data": {"path": str(text)},
        "train": {
            "steps": 20, "rows": 4, "micro_rows": 2, "seed": 1, "save_every_steps": 5, "keep_last": 2,
            "learning_rate": 0.003, "threads": 1, **train,
        },
        "run": {"dir": str(folder / run_dir)},
    }  # fmt: skip
    path = folder / f"{run_dir}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def run_command(words: list[str], output: str, environment: dict[str, str]) -> None:
    """In the child: the command line's main, its streams in files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(f"{output}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.update(environment)
    os.setpgid(0, 0)  # a group of its own, as a shell gives each command
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from fledge.cli.main import main

    code = main(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


@dataclass
class Command:
    """A running or finished command."""

    process: Any
    output: str

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return Path(f"{self.output}.stdout").read_text()

    @property
    def stderr(self) -> str:
        return Path(f"{self.output}.stderr").read_text()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, seconds: float = 300) -> int:
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running after {seconds} s"
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def signal_group(self, number: int) -> None:
        """To every process of the command, as a terminal or a service manager does."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it by SIGKILL. It must have been alive: a run that had ended would make the trial say nothing."""
        self.process.kill()
        assert self.wait(30) == -signal.SIGKILL, f"ended by itself with {self.returncode}: {self.stderr}"

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start(*words: str, **environment: str) -> Command:
    """Start one command; in a `with`, it does not outlive a failed test."""
    output = tempfile.mkdtemp() + "/out"
    process = SERVER.Process(target=run_command, args=(list(words), output, environment))
    process.start()
    return Command(process, output)


def fledge(*words: str, **environment: str) -> Command:
    """Run one command to its end."""
    with start(*words, **environment) as command:
        command.wait()
    return command


def fresh_process(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one command in a new interpreter."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "fledge", *words]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)


def pretrain(config: Path, *words: str, **environment: str) -> Command:
    return fledge("pretrain", str(config), "--json", *words, **environment)


def wait_for_step(run: Path, step: int, command: Command, seconds: float = 60) -> None:
    """Until the run's log holds `step`, even if the command has ended meanwhile."""
    until, log, alive = time.monotonic() + seconds, run / "log.jsonl", True
    while alive and time.monotonic() < until:
        alive = command.process.is_alive()  # asked first: what it wrote before its end is read below
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)
    raise AssertionError(f"step {step} never came; exit {command.returncode}: {command.stderr}")


def losses(run: Path) -> dict[int, str]:
    """Step -> loss as a hex float, from the run's log."""
    found = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] == "step":
            assert event["step"] not in found, "a step stands twice in the log"
            found[event["step"]] = float(event["loss"]).hex()
    return found


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
