"""Trial 2 for learning from rewards: a run that was killed between and inside rollouts ends with the same bits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from fledge.model.folder import save_model
from tests.align.toy import config_file, events, letters, tiny, world
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


def student_file(folder: Path, run_dir: str) -> Path:
    """A student that writes three of four batches itself, two at once; its teacher is a wider model."""
    if not (folder / "teacher").exists():
        world(folder)
        save_model(tiny(7, width=64), folder / "teacher", letters())
        (folder / "text.txt").write_text("".join(f"{n}+{n}={2 * n}. abc " for n in range(400)))
    config = {
        "init_from": str(folder / "base"),
        "data": {"path": str(folder / "text.txt")},
        "teacher": {"path": str(folder / "teacher"), "beta": 0.9, "temperature": 1.0, "share": 0.8},
        "on_policy": {"share": 0.75, "prompt_tokens": 4, "max_tokens": 6, "batches": 2},
        "train": {**STEPS, "rows": 4, "row_tokens": 16, "learning_rate": 0.01, "threads": 1, "eval_every_steps": 0},
        "run": {"dir": str(folder / run_dir)},
    }
    path = folder / f"{run_dir}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.mark.slow
def test_trial_2_a_student_killed_inside_what_it_wrote_ends_with_the_same_bits(tmp_path):
    assert fledge("distill", str(student_file(tmp_path, "whole")), "--json").returncode == 0
    config, run = student_file(tmp_path, "run"), tmp_path / "run"
    for step in (3, 6):  # batches 1 and 2, 3 and 5, 6 and 7 … are a rollout each
        killed = fledge("distill", str(config), "--json", FLEDGE_FAULTS=f"kill_after_checkpoint@{step}")
        assert killed.returncode == 137, killed.stderr
    assert fledge("distill", str(config), "--json").returncode == 0
    assert losses(run) == losses(tmp_path / "whole") and rollouts(run) == rollouts(tmp_path / "whole")
    assert weights(run / "model") == weights(tmp_path / "whole" / "model")
    assert [event["batch"] for event in events(run, "rollout")] == [1, 3, 6, 9, 11]
    assert len(set(rollouts(run).values())) == 5
