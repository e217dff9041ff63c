"""How processes that share a model end: together, with one error or none, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from fledge.cli.main import main
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from tests.engine.stub_engine import TOKENIZER
from tests.parallel.fleet import PRELOADED, SERVER, free_port
from tests.parallel.test_runs import ended, said
from tests.serve.running import ROOT, running
from tests.trials.tiny import Command, start

PROMPT = ("--prompt", "Once upon a time", "--ignore-eos", "--seed", "3", "--threads", "1")


SERVER.set_forkserver_preload([*PRELOADED, "fledge.cli.generate", "fledge.engine.shared"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("model") / "long"
    shape = ShapeConfig("llama", width=32, layers=2, heads=4, context_tokens=16384, vocab_size=TOKENIZER.vocab_size)
    torch.manual_seed(1)
    save_model(initialise(build(family("llama").build(shape), "cpu"), 5).eval(), place, TOKENIZER)
    return str(place)


def launched(n: int, *words: str, verb: str = "generate") -> list[Command]:
    """The processes of one command, as torchrun would start them."""
    port = str(free_port())
    return [
        start(verb, *words, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1",
              MASTER_PORT=port)
        for rank in range(n)
    ]  # fmt: skip


@contextmanager
def under_way(folder: str, n: int, *words: str) -> Iterator[list[Command]]:
    """Processes in the middle of an answer that takes far longer than the test; none outlives the block."""
    with ExitStack() as stack:
        commands = [stack.enter_context(one) for one in launched(n, folder, *PROMPT, "--max-tokens", "16000", *words)]
        spoken = Path(f"{commands[0].output}.stderr")
        began = time.monotonic()
        while not spoken.exists() or "processes share" not in commands[0].stderr:
            assert time.monotonic() - began < 60 and commands[0].process.is_alive(), commands[0].stderr
            time.sleep(0.05)
        time.sleep(0.5)
        assert all(command.process.is_alive() for command in commands)
        yield commands


def test_the_end_is_clean_and_the_text_that_of_one_process(folder, capfd):
    words = (*PROMPT, "--max-tokens", "24")
    assert main(["generate", folder, *words]) == 0
    alone = capfd.readouterr().out
    commands = launched(2, folder, *words, "parallel.tensor=2")
    assert ended(commands) == [0, 0], [command.stderr for command in commands]
    assert [command.stdout for command in commands] == [alone, ""] and len(alone) > 30
    assert commands[1].stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor", "pipe"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_and_no_other_hangs(mesh, victim, folder):
    with under_way(folder, 2, f"parallel.{mesh}=2") as commands:
        began = time.monotonic()
        os.kill(commands[victim].pid, signal.SIGKILL)
        codes = ended(commands)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1 and time.monotonic() - began < 40
    (line,) = said(commands)
    assert line.startswith(f"error: rank {victim}: expected an answer within parallel.timeout_seconds=300, got none")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor", "pipe"])
def test_a_process_that_hangs_is_named_within_the_time_limit(mesh, folder):
    with under_way(folder, 2, f"parallel.{mesh}=2", "parallel.timeout_seconds=4") as commands:
        began = time.monotonic()
        commands[1].send_signal(signal.SIGSTOP)
        code = commands[0].wait(60)
    assert code == 1 and time.monotonic() - began < 40
    assert said(commands)[0].startswith("error: rank 1: expected an answer within parallel.timeout_seconds=4")


@pytest.mark.slow
@pytest.mark.parametrize("whom", [(0, 1), (1, 0), (0,)], ids=str)
def test_ctrl_c_ends_all_and_is_said_once(whom, folder):
    with under_way(folder, 2, "parallel.pipe=2") as commands:
        for rank in whom:  # a terminal tells all of them
            commands[rank].send_signal(signal.SIGINT)
        assert ended(commands) == [130, 130]
    assert said(commands) == ["error: interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("parallel.tensor=3",), "parallel: expected tensor 3 x pipe 1 processes, got 2 (WORLD_SIZE); start 3 with"),
        ((), "parallel: expected tensor 1 x pipe 1 processes, got 2 (WORLD_SIZE); start 1 with torchrun"),
        (("parallel.pipe=2", "--max-tokens", "20000"), "context"),
        (("parallel.pipe=2", "--penalty-alpha", "0.6", "--top-k", "4"), "penalty_alpha: expected a model"),
    ],
    ids=["mesh", "no mesh", "request", "contrastive"],
)  # fmt: skip
def test_an_error_is_said_once_and_ends_all_with_its_code(words, message, folder):
    prompt = PROMPT if "--penalty-alpha" not in words else PROMPT[:2]
    commands = launched(2, folder, *prompt, *words)
    codes = ended(commands)
    assert len(set(codes)) == 1 and codes[0] in (1, 2), (codes, [command.stderr for command in commands])
    (line,) = said(commands)
    assert message in line


@pytest.mark.slow
def test_torchrun_starts_it(folder, capfd):
    words = [folder, *PROMPT, "--max-tokens", "24", "--json"]
    assert main(["generate", *words]) == 0
    alone = json.loads(capfd.readouterr().out)["choices"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*torchrun, "-m", "fledge", "generate", *words, "parallel.tensor=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["choices"] == alone


# A server


def serving(folder: str, mesh: str, stack: ExitStack, **more: str) -> tuple[Command, Callable[..., object]]:
    """The second process of a server of two, and a context of the first."""
    names = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = (f"engine.parallel.{mesh}=2", "engine.threads=1", *more.values())
    follower = stack.enter_context(start("serve", folder, *words, **names, RANK="1", LOCAL_RANK="1"))
    return follower, lambda: running(folder, *words, environment={**names, "RANK": "0", "LOCAL_RANK": "0"})


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tensor", "pipe"])
def test_a_server_of_two_processes_answers_as_one_and_ends_cleanly(mesh, folder):
    asked = {"max_tokens": 12, "temperature": 0.8, "seed": 5}
    with running(folder, "engine.threads=1") as alone:
        expected = alone.complete("Hello", **asked).json()["choices"]
    with ExitStack() as stack:
        follower, first = serving(folder, mesh, stack, short="engine.parallel.timeout_seconds=6")
        with first() as server:
            assert server.complete("Hello", **asked).json()["choices"] == expected
            time.sleep(9)  # longer than a process waits for another
            assert server.complete("Hello", **asked).json()["choices"] == expected
            follower.send_signal(signal.SIGTERM)  # as a launcher tells all
            assert server.complete("Hello", **asked).json()["choices"] == expected
            assert server.stop(30) == 0, server.errors()
        assert follower.wait(30) == 0, follower.stderr


@pytest.mark.slow
def test_a_server_ends_when_a_process_that_shares_its_model_does(folder):
    with ExitStack() as stack:
        follower, first = serving(folder, "tensor", stack)
        with first() as server:
            follower.process.kill()
            answer = server.complete("Hello", max_tokens=5)
            assert answer.status_code >= 500
            assert server.process.wait(40) == 1
            assert "share the model" in server.errors()


def test_a_server_of_several_processes_refuses_what_they_can_not_share(monkeypatch, folder, tmp_path, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["serve", folder, "engine.parallel.tensor=2", "--port", "0"]
    assert main([*words, f"adapters_dir={tmp_path}"]) == 2
    assert "adapters: expected none for several processes" in capfd.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(words) == 2
    assert "start 2 with torchrun" in capfd.readouterr().err
