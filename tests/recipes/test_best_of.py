"""Rejection sampling: the best of n answers, written as conversations that tuning reads."""

from __future__ import annotations

import json

import pytest

from fledge.align.rl_config import RewardConfig
from fledge.errors import ConfigError, DataError
from fledge.recipes.best_of import best_of
from fledge.recipes.rl_config import BestOfConfig
from fledge.text.conversation import read_conversations
from tests.align.toy import world

DIGIT = RewardConfig("regex", pattern="[0-9].*")


def settings(folder, **more):
    world(folder)
    given = {"data": str(folder / "prompts.jsonl"), "out": folder / "best.jsonl", "rewards": (DIGIT,), "max_tokens": 3}
    return BestOfConfig(str(folder / "base"), **{**given, "whole": False, **more})


def test_the_best_answers_are_written_as_conversations(tmp_path):
    figures = best_of(settings(tmp_path, samples=20))
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert figures["prompts"] == figures["written"] == len(rows) == 10
    assert figures["reward_all"] < figures["reward_best"] == 1.0 and {row["reward"] for row in rows} == {1.0}
    assert all(row["response"][0].isdigit() for row in rows)
    talks = list(read_conversations(tmp_path / "best.jsonl"))
    assert [[turn.role for turn in talk] for talk in talks] == [["user", "assistant"]] * 10
    assert [talk[1].content for talk in talks] == [row["response"] for row in rows]


def test_one_of_one_is_as_good_as_any(tmp_path):
    """The control: without a choice the reward is that of all answers."""
    figures = best_of(settings(tmp_path, samples=1))
    assert figures["reward_best"] == figures["reward_all"] < 1.0


def test_the_same_seed_writes_the_same_file_and_what_is_too_bad_is_left_out(tmp_path):
    best_of(settings(tmp_path, samples=4, keep=3))
    first = (tmp_path / "best.jsonl").read_text()
    best_of(settings(tmp_path, samples=4, keep=3))
    assert (tmp_path / "best.jsonl").read_text() == first
    best_of(settings(tmp_path, samples=4, keep=3, seed=2))
    assert (tmp_path / "best.jsonl").read_text() != first
    figures = best_of(settings(tmp_path, samples=4, keep=3, least=1.0))
    rows = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert {row["reward"] for row in rows} == {1.0} and figures["written"] == len(rows) < 30
    before = (tmp_path / "best.jsonl").read_text()
    with pytest.raises(DataError, match=r"expected an answer to keep, found none of 40, .*whole=false keeps"):
        best_of(settings(tmp_path, samples=4, whole=True, max_tokens=1))
    assert (tmp_path / "best.jsonl").read_text() == before


def test_what_it_needs_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="data: expected prompts"):
        best_of(settings(tmp_path, data=""))
    with pytest.raises(ConfigError, match="rewards: expected at least one"):
        best_of(settings(tmp_path, rewards=()))
    with pytest.raises(ConfigError, match="keep: expected 1 to the 4"):
        settings(tmp_path, samples=4, keep=5)


def test_the_prompts_are_not_written_over(tmp_path):
    world(tmp_path)
    before = (tmp_path / "prompts.jsonl").read_text()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "prompts.jsonl")
    for name in ("prompts.jsonl", "link.jsonl"):
        with pytest.raises(ConfigError, match="out: expected another file than data"):
            best_of(settings(tmp_path, out=tmp_path / name))
    assert (tmp_path / "prompts.jsonl").read_text() == before
