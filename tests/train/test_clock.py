"""The phases of a run's wall time: they add up, each is charged what it took, and measuring costs next to nothing."""

from __future__ import annotations

import time

import pytest
import torch

from fledge.log import read_log
from fledge.train.clock import ON_DEVICE, SAMPLED, Clock
from fledge.train.record import PHASES
from tests.train.test_loop import go, settings, toy


class Hands:
    """A clock's hands, moved by hand; `waits` are seconds that a device still has to do when it is waited for."""

    def __init__(self) -> None:
        self.at, self.left = 100.0, 0.0

    def __call__(self) -> float:
        return self.at

    def wait(self) -> None:
        self.at, self.left = self.at + self.left, 0.0


def test_every_moment_belongs_to_the_innermost_phase():
    hands = Hands()
    clock = Clock(now=hands)
    hands.at += 1
    with clock("evaluation"):
        hands.at += 2
        with clock("checkpoint"):
            hands.at += 4
        hands.at += 8
    hands.at += 16
    assert clock.taken() == {"checkpoint": 4, "evaluation": 10, "other": 17}
    with pytest.raises(KeyError), clock("data"):
        hands.at += 32
        raise KeyError
    hands.at += 64
    assert clock.taken() == {"data": 32, "other": 64}


def asynchronous_step(clock: Clock, hands: Hands, step: int) -> None:
    """3 seconds forward and 6 backward, of which the device does the last ones while the host waits for a number."""
    clock.begin_step(step)
    with clock("forward"):
        hands.left += 3
    with clock("backward"):
        hands.left += 6
        hands.wait()
    clock.end_step()


def test_phases_of_a_device_are_told_apart_by_waiting_in_some_steps_only():
    hands = Hands()
    clock = Clock(hands.wait, hands)
    for step in range(SAMPLED + 1):
        asynchronous_step(clock, hands, step)
        assert clock.taken() == pytest.approx({"forward": 3, "backward": 6})
    assert ON_DEVICE[0] in PHASES and clock.shares == pytest.approx(
        {"forward": 1 / 3, "backward": 2 / 3, "optimizer": 0, "communication": 0}
    )
    blind = Clock(None, hands)
    asynchronous_step(blind, hands, 0)
    assert blind.taken() == {"backward": 9}  # the control: without waiting the host can't tell them apart


def test_the_phases_of_a_run_add_up_to_its_wall_time(tmp_path, monkeypatch):
    monkeypatch.setattr("fledge.device.matmul_peak", lambda *_, **__: 1e9)
    recipe = toy()
    recipe.during_validation = lambda: time.sleep(0.05)
    began = time.monotonic()
    result = go(tmp_path / "run", recipe, settings(eval_every_steps=2, save_every_steps=2))
    wall = time.monotonic() - began
    events = [event for event in read_log(tmp_path / "run" / "log.jsonl") if "times" in event]
    assert {event["kind"] for event in events} == {"step", "evaluate", "checkpoint", "end"}
    spent = dict.fromkeys(PHASES, 0.0)
    for event in events:
        for phase, seconds in event["times"].items():
            spent[phase] += seconds
    whole = sum(spent.values())
    assert whole == pytest.approx(result["seconds"], rel=0.02, abs=0.002) and whole <= wall
    assert spent["evaluation"] >= 0.05 * len(recipe.validated)
    assert all(spent[phase] > 0 for phase in ("data", "forward", "backward", "optimizer", "checkpoint"))
    assert whole - max(spent.values()) < 0.98 * result["seconds"]  # the control: a phase left out is missed


def test_measuring_costs_less_than_a_two_hundredth_of_a_short_step(tmp_path, monkeypatch):
    """CPU time of what a step asks of the clock, against a step of 4 ms, a model of a hundred thousand parameters."""
    asked = []
    monkeypatch.setattr(Clock, "charge", lambda clock: asked.append(clock.running[-1]))
    go(tmp_path / "run", toy(), settings())
    monkeypatch.undo()
    per_step = len(asked) / 4
    clock, n = Clock(), 2_000

    def cost() -> float:
        began = time.process_time()
        for _ in range(n):
            with clock("forward"):
                pass
        return (time.process_time() - began) / (2 * n)  # of a charge

    assert per_step < 16 and min(cost() for _ in range(5)) * per_step < 0.005 * 0.004


@pytest.mark.gpu
def test_on_a_gpu_forward_and_backward_are_told_apart():
    from fledge.train.clock import clock_of

    device = torch.device("cuda")
    clock, x = clock_of(device), torch.randn(4096, 4096, device=device)
    for step in range(SAMPLED + 2):
        clock.begin_step(step)
        with clock("forward"):
            y = x
            for _ in range(10):
                y = x @ y
        with clock("backward"):
            for _ in range(30):
                y = x @ y
            float(y.sum())
        clock.end_step()
        took = clock.taken()
        if step > 1:
            assert 0.15 < took["forward"] / (took["forward"] + took["backward"]) < 0.35, step
