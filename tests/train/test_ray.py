"""What `fledge.train.ray` does around a recipe, without ray: a module in its place calls the worker for each rank."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fledge.cli.main import guarded, named
from fledge.errors import ConfigError, DataError, Interrupted, PeerError, RankError
from fledge.parallel.config import ParallelConfig
from fledge.recipes.config import PretrainConfig
from fledge.train import ray as under_ray
from fledge.train.config import TrainConfig
from fledge.train.ray import run
from fledge.train.signals import StopRequest, ask
from tests.conftest import ROOT


@dataclass
class Seen:
    """What was asked of the module in Ray's place."""

    begun: int = 0
    over: int = 0
    scaling: Any = None
    torch: Any = None
    failed: list[str] = field(default_factory=list)


class Remote:
    """An actor's handle: its methods by `.remote`, called at once."""

    def __init__(self, made: Any):
        self.made = made

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.made, name))


@pytest.fixture
def seen(monkeypatch, tmp_path) -> Seen:
    """A cluster without GPUs whose workers run one after the other, each at another place with its rank set."""
    seen, elsewhere = Seen(), tmp_path / "elsewhere"
    elsewhere.mkdir()

    class Trainer:
        def __init__(self, work: Callable[..., None], **given: Any):
            self.work, self.given, seen.scaling = work, given["train_loop_config"], given["scaling_config"]
            seen.torch, self.attempts = given["torch_config"], getattr(given["run_config"], "attempts", 1)

        def fit(self) -> None:
            for _ in range(self.attempts):
                seen.failed.clear()
                self.attempt()
            if seen.failed:
                raise RuntimeError("Training failed due to worker errors")

        def attempt(self) -> None:
            home = os.getcwd()
            for rank in range(seen.scaling.num_workers):
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": seen.scaling.num_workers}
                os.environ.update({name: str(number) for name, number in place.items()})
                os.chdir(elsewhere)
                try:
                    self.work(self.given)
                    assert os.getcwd() == str(elsewhere)
                except Exception as error:
                    seen.failed.append(type(error).__name__)
                finally:
                    os.chdir(home)
                    os.environ.update(dict.fromkeys(place, ""))

    def begin() -> None:
        seen.begun += 1

    def end() -> None:
        seen.over += 1

    ray, train, torch = ModuleType("ray"), ModuleType("ray.train"), ModuleType("ray.train.torch")
    ray.train, train.torch = train, torch
    ray.is_initialized, ray.init, ray.shutdown = (lambda: False), begin, end
    ray.remote = lambda **_: lambda cls: SimpleNamespace(remote=lambda: Remote(cls()))
    ray.get, ray.cluster_resources = (lambda value: value), (lambda: {"CPU": 8.0})
    train.ScalingConfig = train.RunConfig = SimpleNamespace
    torch.TorchConfig, torch.TorchTrainer = SimpleNamespace, Trainer
    for module in (ray, train, torch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(under_ray, "POLL_SECONDS", 0.01)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    return seen


CONFIG = PretrainConfig()


def test_the_result_of_rank_0_comes_back_and_paths_are_the_drivers(seen):
    home, ranks = os.getcwd(), []

    def recipe(config: Any) -> dict[str, Any]:
        assert os.getcwd() == home and config is CONFIG
        ranks.append(os.environ["RANK"])
        return {"rank": int(os.environ["RANK"])}

    assert run(recipe, CONFIG, 3) == {"rank": 0}
    assert ranks == ["0", "1", "2"] and (seen.begun, seen.over) == (1, 1)
    assert not seen.scaling.use_gpu and seen.torch.backend == "gloo"
    assert seen.torch.timeout_s == CONFIG.train.parallel.timeout_seconds


def test_gpus_are_asked_for_where_the_config_or_the_cluster_has_them(seen):
    run(lambda _: {}, PretrainConfig(train=TrainConfig(device="cuda")), 2)
    assert seen.scaling.use_gpu and seen.torch.backend == "cpu:gloo,cuda:nccl"
    sys.modules["ray"].cluster_resources = lambda: {"GPU": 2.0}
    run(lambda _: {}, CONFIG, 2)
    assert seen.scaling.use_gpu
    run(lambda _: {}, CONFIG, 3)
    assert not seen.scaling.use_gpu
    run(lambda _: {}, CONFIG, SimpleNamespace(num_workers=5, use_gpu=False))
    assert seen.scaling.num_workers == 5


def test_a_cluster_that_was_there_stays(seen):
    sys.modules["ray"].is_initialized = lambda: True
    run(lambda _: {}, CONFIG, 1)
    assert (seen.begun, seen.over) == (0, 0)


def fails(errors: dict[int, Exception]) -> Callable[[Any], dict[str, Any]]:
    def recipe(_: Any) -> dict[str, Any]:
        error = errors.get(int(os.environ["RANK"]))
        if error is not None:
            raise error
        return {}

    return recipe


def test_the_first_error_is_raised_as_it_is_and_ends_the_others(seen):
    with pytest.raises(DataError, match=r"^text: expected a file$"):
        run(fails({0: PeerError(1, 1), 1: DataError("text: expected a file")}), CONFIG, 2)
    assert seen.failed == ["DataError"] and seen.over == 1  # who failed second says nothing


def test_an_error_after_which_ray_began_again_is_no_more(seen):
    errors = [DataError("once")]

    def recipe(_: Any) -> str:
        if errors and os.environ["RANK"] == "1":
            raise errors.pop()
        return "whole"

    assert run(recipe, CONFIG, 2, SimpleNamespace(attempts=2)) == "whole"
    errors = [DataError("again")]
    with pytest.raises(DataError, match="again"):  # the control
        run(recipe, CONFIG, 2, SimpleNamespace(attempts=1))


def test_an_error_of_no_class_of_ours_has_its_rank(seen):
    with pytest.raises(RankError, match=r"^rank 1: ZeroDivisionError: by what\?; Ray's log"):
        run(fails({1: ZeroDivisionError("by what?")}), CONFIG, 2)


def test_a_run_that_was_saved_is_no_failure_to_ray(seen):
    with pytest.raises(Interrupted, match="saved at step 3"):
        run(fails({0: Interrupted("saved at step 3"), 1: PeerError(0, 75)}), CONFIG, 2)
    assert seen.failed == []


def test_workers_that_end_without_a_word_are_an_error_with_a_way_on(seen, monkeypatch):
    def dies(_: Any) -> None:
        seen.failed.append("killed")

    monkeypatch.setattr(under_ray, "work", dies)
    with pytest.raises(RankError, match="expected 2 workers to end the run, got Training failed.*the same command"):
        run(fails({}), CONFIG, 2)


def test_what_can_not_be_is_refused_before_ray_starts(seen):
    for config, workers, message in (
        (CONFIG, 0, "workers: expected 1 or more"),
        (PretrainConfig(train=TrainConfig(parallel=ParallelConfig(tensor=3))), 2, "got 2"),
        (object(), 2, "expected a recipe that trains"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(fails({}), config, workers)
    assert seen.begun == 0


def test_a_folder_that_a_machine_does_not_see_is_named(seen, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/nowhere/at all")
    with pytest.raises(ConfigError, match="/nowhere/at all: expected the driver's folder on every machine"):
        run(fails({}), CONFIG, 1)


def test_a_signal_at_the_driver_stops_the_workers_runs(seen):
    def recipe(_: Any) -> dict[str, Any]:
        with StopRequest() as stop:  # in Ray's thread, where no signal comes
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 5
            while not stop.asked and time.monotonic() < until:
                time.sleep(0.005)
        raise Interrupted(f"{stop.name or 'no signal'}: saved")

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(Interrupted, match="SIGTERM: saved"):
        run(recipe, CONFIG, 1)


def test_a_request_is_asked_only_while_it_is_open():
    with StopRequest() as first:
        ask("SIGUSR1")
        assert first.asked and first.name == "SIGUSR1"
        ask("SIGTERM")
        assert first.name == "SIGUSR1"
    with StopRequest() as second:
        assert not second.asked
    ask("SIGTERM")
    assert not second.asked


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ray_train", ROOT / "runs" / "launch" / "ray_train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_says_what_the_verb_says(seen, monkeypatch, capsys):
    def recipe(config: PretrainConfig) -> dict[str, Any]:
        if config.train.seed == 7:
            raise DataError("text: expected a file")
        return {"rows": config.train.rows}

    module = script()
    monkeypatch.setattr(module, "named", lambda at: recipe if at.endswith(".pretrain:pretrain") else named(at))
    launch, words = module.launch, ["2", "pretrain", "train.rows=6", "--json"]
    assert guarded(launch, words) == 0 and json.loads(capsys.readouterr().out) == {"rows": 6}
    assert guarded(launch, [*words, "train.seed=7"]) == 1
    assert capsys.readouterr().err == "error: text: expected a file\n"
    for wrong in (["pretrain", "x.yaml"], ["2"], ["2", "pretrain", "train.rowz=6"]):
        assert guarded(launch, wrong) == 2


def test_without_ray_the_extra_is_named(monkeypatch, capsys):
    for name in ("ray", "ray.train", "ray.train.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    module = script()
    monkeypatch.setattr(module, "named", lambda at: at if at.endswith(".pretrain:pretrain") else named(at))
    assert guarded(module.launch, ["2", "pretrain"]) == 1
    assert "pip install 'fledge[ray]'" in capsys.readouterr().err
    assert "ray" not in vars(under_ray)
