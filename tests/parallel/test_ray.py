"""Under Ray Train a run is that of torchrun's processes, and of one: the same steps and weights, one error, one save.

Where ray is not installed but in a folder, name that in BENCH_PEERS.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from fledge.log import read_log
from tests.parallel.fleet import Fleet, Trained, free_port
from tests.parallel.ray_runs import Driver
from tests.parallel.test_equal import LARGEST, config, differences, same

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Iterator[Driver]:
    with pytest.MonkeyPatch.context() as patch:
        for folder in filter(None, [os.environ.get("BENCH_PEERS")]):
            patch.syspath_prepend(folder)
        look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ray') is None)"  # a broken one must fail
        if subprocess.run([sys.executable, "-c", look], env={**os.environ, **path()}, check=False).returncode:
            pytest.skip("ray is not installed")
        made = Driver(tmp_path_factory.mktemp("ray") / "log", path()["PYTHONPATH"])
    yield made
    made.close()


def path() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def trained(driver, folders, tmp_path_factory) -> Callable[..., Trained]:
    """A function that trains one config under Ray, each time in a folder of its own unless one is given."""

    def trained(recipe: str = "plain", folder: Path | None = None, **train: object) -> Trained:
        folder = folder or Path(tmp_path_factory.mktemp("run"))
        driver.ask({**config("gpt2", folders, **train), "run": {"dir": str(folder)}}, recipe)
        return ended(driver, folder)

    return trained


def ended(driver: Driver, folder: Path) -> Trained:
    answer = driver.answer()
    failed = isinstance(answer, list)
    return Trained(folder, steps(folder), None if failed else answer, [tuple(answer) if failed else None])


def steps(folder: Path) -> dict[int, dict[str, float]]:
    log = folder / "log.jsonl"
    return {event["step"]: event for event in read_log(log) if event["kind"] == "step"} if log.exists() else {}


@pytest.fixture(scope="module")
def alone(fleet: Fleet, folders) -> Trained:
    return fleet.train(config("gpt2", folders))


def torchrun(folders: dict[str, str], folder: Path) -> Trained:
    """The same run by the very command."""
    folder.mkdir()
    tree = {**config("gpt2", folders), "run": {"dir": str(folder / "run")}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    command = [*launch, "-m", "fledge", "pretrain", str(folder / "config.yaml"), "--json"]
    done = subprocess.run(command, env={**os.environ, **path()}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Trained(folder / "run", steps(folder / "run"), json.loads(done.stdout), [None])


@pytest.fixture(scope="module")
def in_turn(trained) -> Callable[[str], Trained]:
    """The runs of one start of Ray by name (`ray_runs.in_turn`)."""
    whole = trained("in_turn")
    assert whole.errors == [None]
    return lambda name: Trained(whole.folder / name, steps(whole.folder / name), whole.result[name], [None])


def test_two_workers_train_as_two_processes_of_torchrun_and_as_one(in_turn, folders, alone, tmp_path):
    got = in_turn("plain")
    assert list(got.steps) == [1, 2, 3, 4]
    same(alone, got)
    same(torchrun(folders, tmp_path / "torchrun"), got)
    assert Path(got.result["model"]) == got.folder / "model"


@pytest.mark.parametrize("name", ["seed", "fault"])
def test_another_seed_and_a_forgotten_sum_are_seen(name, in_turn, alone):
    found = differences(alone, in_turn(name))
    assert max(found["loss"], found["norm"]) > 50 * LARGEST, found


def test_the_error_of_one_worker_reaches_the_driver_as_it_is(trained):
    name, text, code = trained("nan_on_rank_1", non_finite="stop").errors[0]
    assert (name, code) == ("NonFiniteError", 1) and "loss nan" in text
    name, text, code = trained(parallel={"tensor": 3}).errors[0]
    assert (name, code) == ("ConfigError", 2) and "got 2" in text


def test_after_a_worker_died_the_same_run_goes_on(trained, alone, tmp_path):
    died = trained("killed_on_rank_1", tmp_path / "run", save_every_steps=2)
    name, text, code = died.errors[0]
    assert (name, code) == ("RankError", 1) and "the same command continues" in text
    assert max(died.steps) < 4 and not (tmp_path / "run" / "model").exists()
    got = trained(folder=tmp_path / "run", save_every_steps=2)
    assert [event["step"] for event in read_log(got.folder / "log.jsonl") if event["kind"] == "resume"] == [2]
    same(alone, got)


def test_a_signal_at_the_driver_saves_once(driver, folders, tmp_path):
    folder = tmp_path / "run"
    driver.ask({**config("gpt2", folders, steps=100_000), "run": {"dir": str(folder)}})
    until = time.monotonic() + 300
    while 3 not in steps(folder) and time.monotonic() < until:
        time.sleep(0.2)
    driver.process.send_signal(signal.SIGTERM)
    got = ended(driver, folder)
    assert got.errors[0][0] == "Interrupted" and got.errors[0][2] == 75 and "SIGTERM" in got.errors[0][1]
    saved = list((folder / "checkpoints").glob("step-*"))
    assert [one.name for one in saved] == [f"step-{max(got.steps):08d}"]
