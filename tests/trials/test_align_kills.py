"""Trials 2 and 4 of learning from preferences: killed after a checkpoint, and in the midst of steps, a run ends in the
bits of one that never was."""

from __future__ import annotations

import pytest
import yaml

from tests.align.running import LORA, made_place, raw_config
from tests.trials.tiny import fledge, losses, start, wait_for_step

RUNS = {
    "dpo": ("dpo", {}),
    "lora": ("dpo", {"tune": LORA}),
    "kto": ("dpo", {"preference": {"loss": "kto"}}),
    "reward": ("reward", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_killed_twice_ends_in_the_same_bits(name, tmp_path):
    verb, more = RUNS[name]
    place = made_place(tmp_path)

    def words(run: str) -> list[str]:
        path = tmp_path / f"{run}.yaml"
        path.write_text(yaml.safe_dump(raw_config(place, tmp_path / run, steps=12, micro_rows=2) | more))
        return ["align", verb, str(path), "--json"]

    assert fledge(*words("whole")).returncode == 0
    assert fledge(*words("run"), FLEDGE_FAULTS="kill_after_checkpoint@3").returncode == 137
    with start(*words("run"), FLEDGE_FAULTS="sleep@8") as command:
        wait_for_step(tmp_path / "run", 8, command)
        command.kill()
    finished = fledge(*words("run"))
    assert finished.returncode == 0, finished.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    for path in (tmp_path / "whole" / "model").glob("*.safetensors"):
        assert (tmp_path / "run" / "model" / path.name).read_bytes() == path.read_bytes()
    assert any((tmp_path / "whole" / "model").glob("*.safetensors"))
