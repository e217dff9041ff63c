"""Trials 1, 2, 4 where they are easily forgotten: other families, dropout, tuning; kills between two writes that belong
together; a config that would train another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.evals.tiny import save_tiny
from tests.trials.tiny import MODEL, Command, fledge, losses, pretrain, weights, write_config

GPT2 = {"family": "gpt2", "width": 16, "layers": 2, "heads": 2, "context_tokens": 32}


def write_sft_config(folder: Path, run_dir: str = "run", **train: Any) -> Path:
    """Tuning of a tiny model on a few conversations."""
    if not (folder / "base").exists():
        save_tiny(folder / "base", noise=0.1)
        rows = [
            {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"yes {i * i}"}]}
            for i in range(40)
        ]
        (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"steps": 12, "rows": 4, "micro_rows": 2, "save_every_steps": 5, "learning_rate": 0.003, "threads": 1}
    config = {
        "model": {"path": str(folder / "base")},
        "data": {"path": str(folder / "chat.jsonl")},
        "train": {**settings, **train},
        "run": {"dir": str(folder / run_dir)},
    }
    path = folder / f"{run_dir}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def sft(config: Path, *words: str, **environment: str) -> Command:
    return fledge("sft", str(config), "--json", *words, **environment)


@pytest.mark.parametrize("model", [GPT2, {**GPT2, "dropout": 0.1}, {**MODEL, "dropout": 0.3}], ids=str)
def test_trial_2_a_stopped_run_of_any_family_and_with_dropout_goes_on_to_the_same_bits(tmp_path, model):
    whole = write_config(tmp_path, "whole", model, steps=12)
    assert pretrain(whole).returncode == 0
    config = write_config(tmp_path, model=model, steps=12)
    assert pretrain(config, "train.stop_after_steps=7").returncode == 75
    assert pretrain(config).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run" / "model") == weights(tmp_path / "whole" / "model")


def test_dropout_changes_the_losses(tmp_path):
    """The control: with it, a resume that forgot the draws would differ."""
    for name, dropout in (("off", 0.0), ("on", 0.3)):
        model = {**MODEL, "dropout": dropout}
        assert pretrain(write_config(tmp_path, name, model, steps=3)).returncode == 0
    assert losses(tmp_path / "off") != losses(tmp_path / "on")


def test_trial_2_a_stopped_tuning_goes_on_to_the_same_bits(tmp_path):
    assert sft(write_sft_config(tmp_path, "whole")).returncode == 0
    config = write_sft_config(tmp_path)
    first = sft(config, "train.stop_after_steps=7")
    assert first.returncode == 75, first.stderr
    assert sft(config).returncode == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert weights(tmp_path / "run" / "model") == weights(tmp_path / "whole" / "model")


def test_a_tuning_row_above_the_context_of_the_base_model_is_refused(tmp_path):
    refused = sft(write_sft_config(tmp_path, row_tokens=4096))
    assert refused.returncode == 2 and "train.row_tokens: expected at most the context of 48" in refused.stderr


def test_a_tuning_goes_on_with_its_own_base_model_and_tokenizer_only(tmp_path):
    config = write_sft_config(tmp_path)
    assert sft(config, "train.stop_after_steps=5").returncode == 75
    path = tmp_path / "base" / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "rms_norm_eps": 0.5}))
    refused = sft(config)
    assert refused.returncode == 1 and "the data has changed" in refused.stderr
    refused = sft(config, "train.allow_changes=true")
    assert refused.returncode == 1 and "holds another model" in refused.stderr
    path.write_text(before)
    assert sft(config, "train.stop_after_steps=6").returncode == 75


def test_allow_changes_does_not_pass_over_another_shape_of_the_model(tmp_path):
    config = write_config(tmp_path)
    assert pretrain(config, "train.stop_after_steps=5").returncode == 75
    refused = pretrain(config, "train.allow_changes=true", "model.rope_theta=500")
    assert refused.returncode == 1 and "holds another model (model.decoder" in refused.stderr, refused.stderr
    allowed = pretrain(config, "train.allow_changes=true", "model.dropout=0.1", "train.stop_after_steps=6")
    assert allowed.returncode == 75, allowed.stderr


def test_micro_rows_may_change_on_resume_but_not_under_dropout(tmp_path):
    for name, dropout, code in (("plain", 0.0, 75), ("dropped", 0.1, 1)):
        config = write_config(tmp_path, name, {**MODEL, "dropout": dropout})
        assert pretrain(config, "train.stop_after_steps=5").returncode == 75
        again = pretrain(config, "train.stop_after_steps=6", "train.micro_rows=4")
        assert again.returncode == code, again.stderr
        assert ("train.micro_rows: was 2, is 4" in again.stderr) == (code == 1)


def best(run: Path) -> dict[str, Any]:
    return json.loads((run / "checkpoints" / "best.json").read_text())


def test_trial_4_a_kill_between_the_best_checkpoint_and_its_mark_does_not_lose_the_best(tmp_path):
    settings = {"eval_every_steps": 5, "steps": 12}
    whole = write_config(tmp_path, "whole", **settings)
    assert pretrain(whole, "train.stop_after_steps=7").returncode == 75
    config = write_config(tmp_path, **settings)
    assert pretrain(config, FLEDGE_FAULTS="kill_after_checkpoint@5").returncode == 137
    assert not (tmp_path / "run" / "checkpoints" / "best.json").exists()
    assert pretrain(config, "train.stop_after_steps=7").returncode == 75
    assert best(tmp_path / "run") == best(tmp_path / "whole")
    assert best(tmp_path / "run")["step"] == 5


def test_trial_4_a_kill_while_a_model_is_published_over_another_leaves_one_of_the_two(tmp_path):
    config, run = write_config(tmp_path, steps=5), tmp_path / "run"
    assert pretrain(config).returncode == 0
    old = weights(run / "model")
    (run / ".new-model-1").mkdir()
    (run / ".new-model-1" / "half").write_text("of another process's")
    assert pretrain(config, "train.steps=8", FLEDGE_FAULTS="kill@publish").returncode == 137
    assert not (run / "model").exists()
    refused = pretrain(config, "train.learning_rate=0.1")  # any command that takes the folder brings the old one back
    assert refused.returncode == 1 and weights(run / "model") == old
    assert pretrain(config, "train.steps=8").returncode == 0
    assert weights(run / "model") != old
    assert [path.name for path in run.glob(".*-model-*")] == []
