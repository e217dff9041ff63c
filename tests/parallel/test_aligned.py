"""Preferences and reward models in two processes: the losses, gradient norms, figures and weights of one.

Each has a control: a fault that belongs to it is planted and must be seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.model.safetensors_file import SafetensorsFile
from fledge.recipes.reference import FILE, NAME
from tests.align.running import LORA, made_place, raw_config
from tests.parallel.fleet import Fleet, Trained
from tests.parallel.test_equal import LARGEST, ZERO1, ZERO2, ZERO3, told
from tests.parallel.test_tuned import apart, differences, same

TRAIN = {"steps": 4, "rows": 4, "micro_rows": 1, "epsilon": 1e-3, "save_every_steps": 0}
# steps that don't overshoot: each that does makes ten times as much of a difference in the last place; and ipo, whose
# gradient goes with what is left to its target, far from it
RATES, BETAS = {"ipo": 0.0005}, {"ipo": 0.3}
LOSSES = ("dpo", "hinge", "ipo", "kto", "orpo", "simpo")
GRID = [(loss, mesh) for loss in LOSSES for mesh in ({}, ZERO1, ZERO2, ZERO3)]
FIGURES = ("reward_", "log_p_", "divergence")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return made_place(tmp_path_factory.mktemp("aligned"))


def tree(place: Path, loss: str, tune: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    raw = raw_config(place, place / "run", **{**TRAIN, "learning_rate": RATES.get(loss, 0.002), **train})
    if loss == "reward":
        return raw | {"reward": {"centring": 0.01}}
    return raw | {"preference": {"loss": loss, "beta": BETAS.get(loss, 1.0)}} | ({"tune": tune} if tune else {})


def verb(loss: str) -> str:
    return "reward" if loss == "reward" else "align"


@pytest.fixture(scope="module")
def alone(pair, place):
    """One process's run of a loss, once."""
    known: dict[str, Trained] = {}

    def run(loss: str) -> Trained:
        if loss not in known:
            known[loss] = pair.run(verb(loss), tree(place, loss))
            assert known[loss].errors == [None]
        return known[loss]

    return run


def same_figures(expected: Trained, got: Trained) -> None:
    """What is logged of answers at each step, and of held-out ones at the end, is of all processes."""
    for step, values in expected.steps.items():
        names = [name for name in values if name.startswith(FIGURES)]
        assert len(names) >= 4 and [n for n in got.steps[step] if n.startswith(FIGURES)] == names
        for name in names:
            assert got.steps[step][name] == pytest.approx(values[name], abs=1e-5, rel=1e-6), (step, name)
    assert expected.result is not None and got.result is not None
    for name in (name for name in expected.result if name.startswith("val_")):
        assert got.result[name] == pytest.approx(expected.result[name], abs=1e-5, rel=1e-6), name


def log_p_table(run: Path) -> Any:
    with SafetensorsFile(run / FILE) as file:
        return file.read(NAME)


@pytest.mark.parametrize(("loss", "mesh"), [("dpo", ZERO3), ("kto", {}), ("reward", {})], ids=told)
def test_two_processes_learn_from_preferences_as_one(loss, mesh, pair: Fleet, place, alone):
    got = pair.run(verb(loss), tree(place, loss), 2, parallel=mesh)
    same(alone(loss), got)
    same_figures(alone(loss), got)
    if loss == "dpo":
        assert (log_p_table(got.folder) == log_p_table(alone(loss).folder)).all()  # each made a half, to the bit
    if loss == "reward":
        reports = [json.loads((run.folder / "calibration.json").read_text()) for run in (alone(loss), got)]
        assert reports[0]["accuracy"] == reports[1]["accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "mesh"), [*GRID, *(("reward", mesh) for mesh in (ZERO1, ZERO2, ZERO3))], ids=told)
def test_every_loss_is_learnt_on_every_mesh_as_in_one_process(loss, mesh, pair: Fleet, place, alone):
    got = pair.run(verb(loss), tree(place, loss), 2, parallel=mesh)
    same(alone(loss), got)
    same_figures(alone(loss), got)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, ZERO1, ZERO3], ids=told)
@pytest.mark.parametrize("loss", ["dpo", "kto", "orpo"])
def test_an_adapter_learns_from_preferences_in_two_as_in_one(loss, mesh, pair: Fleet, place):
    asked = tree(place, loss, LORA)
    same(pair.run("align", asked), pair.run("align", asked, 2, parallel=mesh))


@pytest.mark.parametrize(
    ("fault", "loss", "mesh"),
    [
        ("own divergence", "kto", {}),
        pytest.param("mean of means", "orpo", {}, marks=pytest.mark.slow),
        pytest.param("no sum", "dpo", {}, marks=pytest.mark.slow),
        pytest.param("same rows", "reward", {}, marks=pytest.mark.slow),
        pytest.param("averaged", "simpo", ZERO3, marks=pytest.mark.slow),
    ],
    ids=told,
)
def test_a_planted_fault_is_seen(fault, loss, mesh, pair: Fleet, place, alone):
    got = pair.run(verb(loss), tree(place, loss), 2, sabotage=fault, parallel=mesh)
    found = differences(alone(loss), got)
    assert max(found["loss"], found["norm"]) > 50 * LARGEST, found


@pytest.mark.parametrize(
    ("loss", "mesh"),
    [("kto", {}), *(pytest.param(one, ZERO3, marks=pytest.mark.slow) for one in ("dpo", "orpo", "reward"))],
    ids=told,
)
def test_a_stop_loses_nothing_and_one_process_goes_on_from_two(loss, mesh, pair: Fleet, place, alone):
    for index, (n, shared, stop) in enumerate([(2, mesh, 1), (2, mesh, 2), (1, {}, 3), (2, ZERO1, 0)]):
        got = pair.run(verb(loss), tree(place, loss), n, index > 0, parallel=shared, stop_after_steps=stop)
        codes = {error[2] for error in got.errors if error is not None}
        assert codes == ({75} if stop else set()), got.errors
    assert list(got.steps) == list(alone(loss).steps)
    assert max(abs(a - b) for a, b in zip(got.losses, alone(loss).losses, strict=True)) <= LARGEST
    assert apart(alone(loss).folder / "model", got.folder / "model") <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "pipe"])
def test_processes_that_share_rows_are_refused(axis, pair: Fleet, place):
    got = pair.run("align", tree(place, "dpo"), 2, parallel={axis: 2})
    assert any(error and error[0] == "ConfigError" and f"{axis}: expected 1" in error[1] for error in got.errors)
