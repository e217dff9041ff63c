"""Rollouts in two processes: each answers a share of the prompts, and rewards, advantages, losses, gradient norms and
weights are those of one.

Each has a control: a fault that belongs to it is planted and must be seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fledge.recipes.rollout_file import read_rollout
from tests.align.toy import config_file, events
from tests.parallel.fleet import Fleet, Trained
from tests.parallel.test_equal import LARGEST, WEIGHTS, ZERO1, ZERO3, told
from tests.parallel.test_tuned import LORA, apart, differences

RL = {"train": {"steps": 8, "rows": 8, "micro_rows": 2, "epsilon": 1e-3, "device": "cpu"}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"grpo": {"kl": 0.05}}),
    "rloo": ("grpo", {"grpo": {"advantage": "rloo", "kl_in_reward": 0.05}}),
    "sequence": ("grpo", {"grpo": {"normalise": "sequence", "entropy": 0.01}}),
    "ppo": ("ppo", {"ppo": {"whiten": True, "kl": 0.05}}),
    "lora": ("grpo", {"tune": {**LORA, "dropout": 0.0}}),
    # steps that don't overshoot: those that do make a multiple of every difference in the last place
    "lora ppo": ("ppo", {"tune": {**LORA, "dropout": 0.0}, "train": {**RL["train"], "learning_rate": 0.003}}),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return Path(tmp_path_factory.mktemp("rewarded"))


def run(
    fleet: Fleet, place: Path, method: str, n: int = 1, go_on: bool = False, sabotage: str = "", **train: Any
) -> Trained:
    verb, more = METHODS[method]
    tree = yaml.safe_load(config_file(place, **{**RL, **more}).read_text())
    return fleet.run(verb, tree, n, go_on, sabotage, **train)


@pytest.fixture(scope="module")
def alone(pair, place):
    """One process's run of a method, once."""
    known: dict[str, Trained] = {}

    def made(method: str) -> Trained:
        if method not in known:
            known[method] = run(pair, place, method)
            assert known[method].errors == [None]
        return known[method]

    return made


def same(expected: Trained, got: Trained) -> None:
    """Losses, norms and weights, the tokens of every answer, and the figures of rollouts, held-out answers and clipped
    tokens."""
    found = differences(expected, got)
    assert found["loss"] <= LARGEST and found["norm"] <= LARGEST and found["validation"] <= LARGEST, found
    assert found["weights"] <= WEIGHTS, found
    files = sorted((expected.folder / "rollouts").glob("*.jsonl"))
    assert len(files) == 2 and [f.name for f in files] == sorted(f.name for f in (got.folder / "rollouts").iterdir())
    for number in range(len(files)):
        one, two = (read_rollout(each.folder / "rollouts", number) for each in (expected, got))
        assert one is not None and two is not None
        assert [a.token_ids for a in one.answers] == [a.token_ids for a in two.answers]
        assert [a.reward for a in one.answers] == [a.reward for a in two.answers]
        for name in one.figures.keys() - {"agreement_k3", "agreement_largest"}:
            assert two.figures[name] == pytest.approx(one.figures[name], abs=1e-5), name
    shares = [[event["clip_share"] for event in events(each.folder, "policy")] for each in (expected, got)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-9) and shares[0]


@pytest.mark.parametrize(
    ("method", "mesh"),
    [
        ("grpo", {}),
        ("ppo", {}),
        *(
            pytest.param(m, z, marks=pytest.mark.slow)
            for m in METHODS
            for z in ({}, ZERO1)
            if (m, z) not in (("grpo", {}), ("ppo", {}))
        ),
    ],
    ids=told,
)
def test_two_processes_learn_from_rewards_as_one(method, mesh, pair: Fleet, place, alone):
    same(alone(method), run(pair, place, method, 2, parallel=mesh))


@pytest.mark.parametrize(
    ("fault", "method"),
    [
        ("own seeds", "grpo"),
        pytest.param("same rows", "grpo", marks=pytest.mark.slow),
        pytest.param("own whitening", "ppo", marks=pytest.mark.slow),
        pytest.param("no sum", "rloo", marks=pytest.mark.slow),
    ],
    ids=told,
)
def test_a_planted_fault_is_seen(fault, method, pair: Fleet, place, alone):
    got = run(pair, place, method, 2, sabotage=fault)
    found = differences(alone(method), got)
    assert max(found["loss"], found["norm"]) > 50 * LARGEST, found


@pytest.mark.parametrize("method", ["ppo", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_stop_inside_a_rollout_loses_nothing(method, pair: Fleet, place, alone):
    """On two processes to the same bits; and one process goes on inside a rollout of two."""
    whole = run(pair, place, method, 2)
    for index, stop in enumerate((2, 5, 0)):
        again = run(pair, place, method, 2, index > 0, stop_after_steps=stop)
        assert {error[2] for error in again.errors if error} == ({75} if stop else set()), again.errors
    assert again.losses == whole.losses and again.norms == whole.norms
    assert apart(whole.folder / "model", again.folder / "model") == 0.0
    for number in range(2):
        texts = [(each.folder / f"rollouts/{number:08d}.jsonl").read_text() for each in (whole, again)]
        assert texts[0].splitlines()[1:] == texts[1].splitlines()[1:]
    run(pair, place, method, 2, stop_after_steps=2)
    last = run(pair, place, method, 1, True)
    assert last.errors == [None]
    same(alone(method), last)


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_with_it(pair: Fleet, place):
    verb, more = METHODS["grpo"]
    tree = yaml.safe_load(config_file(place, **{**RL, **more}).read_text())
    got = pair.run(verb, tree, 2, sabotage="no reward")
    first, other = sorted(error for error in got.errors if error)
    assert (first[0], other[0]) == ("DataError", "PeerError") and "planted" in first[1]
    got = pair.run(verb, {**tree, "train": {**tree["train"], "parallel": ZERO3}}, 2)
    assert any(error and error[0] == "ConfigError" and "shard_stage: expected 1" in error[1] for error in got.errors)
