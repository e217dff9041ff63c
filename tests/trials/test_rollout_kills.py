"""Trial 2 for learning from rewards: a run that was killed between and inside rollouts ends with the same bits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.align.toy import config_file, events
from tests.trials.tiny import Command, fledge, losses, start, wait_for_step

GROUPS = {
    "grpo": {"grpo": {"kl": 0.05}},
    "ppo": {"ppo": {"kl_target": 0.5, "kl_horizon": 64}, "tune": {"method": "lora"}},
}
ONCE = {"epochs": 1}
STEPS = {"steps": 12, "save_every_steps": 3}  # 4 updates a rollout: checkpoints inside and, at 12, between


def align(verb: str, config: Path, *words: str, **environment: str) -> Command:
    return fledge("align", verb, str(config), "--json", *words, **environment)


def weights(folder: Path) -> bytes:
    """Of a model or of an adapter, and the value head's."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors")))


def rollouts(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "rollouts").iterdir())}


def same(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for run in (one, other):
        assert [event["batch"] for event in events(run, "rollout")] == [0, 4, 8], "a rollout stands twice in the log"
    assert rollouts(one) == rollouts(other) and len(rollouts(one)) == 3
    assert weights(one / "model") == weights(other / "model")


@pytest.mark.parametrize("verb", ["grpo", pytest.param("ppo", marks=pytest.mark.slow)])
def test_trial_2_a_run_killed_inside_and_between_rollouts_ends_with_the_same_bits(tmp_path, verb):
    whole = config_file(tmp_path, "whole", **GROUPS[verb], rollout=ONCE, train=STEPS)
    done = align(verb, whole)
    assert done.returncode == 0, done.stderr
    config, run = config_file(tmp_path, **GROUPS[verb], rollout=ONCE, train=STEPS), tmp_path / "run"
    for step in (3, 6):  # after a checkpoint inside rollout 0, and one inside rollout 1
        assert align(verb, config, FLEDGE_FAULTS=f"kill_after_checkpoint@{step}").returncode == 137
    assert align(verb, config, "train.stop_after_steps=8").returncode == 75  # exactly between two
    assert align(verb, config).returncode == 0
    same(run, tmp_path / "whole")
    assert len(list((run / "model").glob("*.safetensors"))) == (2 if verb == "ppo" else 1)


@pytest.mark.slow
def test_trial_2_a_run_killed_at_any_moment_of_a_rollout_ends_with_the_same_bits(tmp_path):
    """SIGKILL right after a rollout is on the disk (the next checkpoint is older than it), and in its middle."""
    assert align("grpo", config_file(tmp_path, "whole", rollout=ONCE, train=STEPS)).returncode == 0
    config, run = config_file(tmp_path, rollout=ONCE, train=STEPS), tmp_path / "run"
    with start("align", "grpo", str(config)) as command:
        until = time.monotonic() + 60
        while not (run / "rollouts" / "00000001.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.001)
        command.kill()
    with start("align", "grpo", str(config)) as command:
        wait_for_step(run, 6, command)
        command.kill()
    assert align("grpo", config).returncode == 0
    same(run, tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_forgot_its_rollout_would_differ(tmp_path):
    """The control: made again by the weights inside it, the rollout is another one, and so is the run's end."""
    assert align("grpo", config_file(tmp_path, "whole", rollout=ONCE, train=STEPS)).returncode == 0
    config, run = config_file(tmp_path, rollout=ONCE, train=STEPS), tmp_path / "run"
    assert align("grpo", config, "train.stop_after_steps=7").returncode == 75
    (run / "rollouts" / "00000001.jsonl").write_bytes((tmp_path / "whole" / "rollouts" / "00000002.jsonl").read_bytes())
    assert align("grpo", config).returncode == 0
    assert weights(run / "model") != weights(tmp_path / "whole" / "model")
