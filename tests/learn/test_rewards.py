"""Learning from rewards reaches what is known to be best; without an advantage it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fledge.config import load
from fledge.recipes import rl
from fledge.recipes.rl_config import GrpoRunConfig, PpoRunConfig
from tests.align.toy import config_file, events

COPY = {"rewards": [{"kind": "text"}], "rollout": {"prompts": 10, "samples": 16, "max_tokens": 1, "epochs": 1}}
# Advantages keep their size: near the best, where nearly all answers are worth the same, noise of deviation 1 would be
# learned from.
METHODS = {
    "grpo": (GrpoRunConfig, rl.grpo, {"grpo": {"by_deviation": False}}),
    "ppo": (PpoRunConfig, rl.ppo, {"ppo": {"kl": 0.0, "value": 0.5, "whiten": False}}),
}


def learned(folder: Path, method: str, name: str = "run", **more: Any) -> tuple[dict[str, Any], list[float]]:
    """The run's figures, and the mean of every rollout's first part of its reward."""
    kind, run, settings = METHODS[method]
    result = run(load(kind, config_file(folder, name, **{**settings, **more})))
    (first,) = [key for key in events(folder / name, "rollout")[0] if key in ("reward_regex", "reward_text")]
    return result, [event[first] for event in events(folder / name, "rollout")]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_copying_a_digit_is_learned_to_95_percent_of_the_best(tmp_path, method):
    """10 prompts, 23 tokens, one right: a random policy is rewarded with about 0.05, the best with 1."""
    train = {"steps": 240, "rows": 80, "learning_rate": 0.003}
    result, rewards = learned(tmp_path, method, **COPY, train=train)
    assert rewards[0] < 0.15
    assert sum(rewards[-10:]) / 10 >= 0.95 and result["val_reward"] >= 0.95


@pytest.mark.parametrize("method", METHODS)
def test_a_reward_rises_where_it_counts_and_nowhere_else(tmp_path, method):
    """A digit as the first character. The control: the same reward of weight 0, so that every advantage is 0."""
    digit = {"kind": "regex", "pattern": "[0-9]"}
    found = {}
    for name, weight in (("counts", 1.0), ("control", 0.0)):
        more = {"rewards": [{**digit, "weight": weight}], "rollout": {**COPY["rollout"], "samples": 8}}
        train = {"steps": 10, "rows": 80, "learning_rate": 0.01}
        found[name] = learned(tmp_path, method, name, **more, train=train)[1]
    assert found["counts"][0] == found["control"][0] < 0.7
    assert found["counts"][-1] > 0.9
    assert found["control"][-1] < 0.7
