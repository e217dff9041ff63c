"""What a model's answers are worth and how far they are from a reference, for a model of any method."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from fledge.align.rl_config import RewardConfig
from fledge.errors import ConfigError
from fledge.model.folder import save_model
from fledge.recipes.measure import measure
from fledge.recipes.rl_config import MeasureConfig
from tests.align.toy import DIGITS, letters, tiny, world
from tests.evals.tiny import save_tiny

DIGIT, SHORT = RewardConfig("regex", pattern="[0-9].*"), RewardConfig("length", tokens=2)


def settings(folder, **more):
    world(folder)
    if not (folder / "other").exists():
        other = tiny(9)
        with torch.no_grad():
            other.embedding.weight.mul_(1.5)
        save_model(other, folder / "other", letters())
    given = {"data": str(folder / "prompts.jsonl"), "rewards": (DIGIT,), "judge": (SHORT,), "max_tokens": 4,
             "samples": 6, "out": folder / "answers.jsonl"}  # fmt: skip
    return MeasureConfig(str(folder / "base"), **{**given, **more})


def test_the_figures_are_those_of_the_answers_and_the_distance_is_transformers_own(tmp_path):
    found = measure(settings(tmp_path, reference=str(tmp_path / "other"), temperature=0.7), json=True)
    rows = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert found["prompts"] == 10 and found["answers"] == len(rows) == 60
    by_digit = [row["text"][:1] in DIGITS and row["text"] != "" for row in rows]
    assert found["reward"] == pytest.approx(np.mean(by_digit)) and 0 < found["reward"] < 1
    low, high = found["reward_interval"]
    assert low < found["reward"] < high
    assert found["judge"] == pytest.approx(np.mean([max(0, 1 - abs(len(r["token_ids"]) - 2) / 2) for r in rows]))
    told = {}
    for name in ("base", "other"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32)
        told[name] = [log_probabilities(model, row, 0.7) for row in rows]
    away = np.concatenate(told["base"]) - np.concatenate(told["other"])
    assert found["kl_answer"] == pytest.approx(away.sum() / len(rows), abs=1e-4) and abs(found["kl_answer"]) > 1e-3
    assert found["kl"] == pytest.approx((np.expm1(-away) + away).mean(), abs=1e-4)


@torch.no_grad()
def log_probabilities(model, row, temperature):
    ids = torch.tensor([[*row["prompt_ids"], *row["token_ids"]]])
    log_p = torch.log_softmax(model(ids).logits[0].double() / temperature, -1)
    begin = len(row["prompt_ids"])
    return log_p[range(begin - 1, ids.shape[1] - 1), ids[0, begin:]].numpy()


def test_without_a_reference_there_is_no_distance_and_the_same_seed_gives_the_same_answers(tmp_path, capsys):
    first = measure(settings(tmp_path))
    assert first["kl"] == pytest.approx(0, abs=1e-12) and "60 answers to 10 prompts; reward" in capsys.readouterr().out
    again, other = measure(settings(tmp_path, out=None)), measure(settings(tmp_path, out=None, seed=2))
    assert again == first != other


def test_what_cannot_be_measured_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="data: expected prompts as JSON lines"):
        measure(settings(tmp_path, data=""))
    save_tiny(tmp_path / "bytes")
    with pytest.raises(ConfigError, match="reference: expected a model of .*'s tokenizer, got another"):
        measure(settings(tmp_path, reference=str(tmp_path / "bytes")))
    for more, what in (
        ({"samples": 0}, "samples: expected at least 1"),
        ({"temperature": 0.0}, "temperature: expected"),
    ):
        with pytest.raises(ConfigError, match=what):
            settings(tmp_path, **more)
