"""runs/compare: its table's figures by hand, what its files pay for, and (slow) its bars on one seed."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from fledge.align.rewards import REWARDS
from fledge.align.rl_config import RewardConfig

RUNS = Path(__file__).resolve().parents[2] / "runs" / "compare"


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(RUNS))
    return SimpleNamespace(**{name: importlib.import_module(name) for name in ("task", "table", "page", "compare")})


def paid(file: str, group: str, word: str, answer: str, task: Any) -> float:
    """What a file's rewards say of an answer."""
    rewards = [RewardConfig(**one) for one in yaml.safe_load((RUNS / file).read_text())[group]]
    row = task.prompt_row(word)
    return sum(one.weight * REWARDS[one.kind](answer, list(answer) + [0], row, one) for one in rewards)


def test_every_file_pays_for_what_the_task_says_and_the_hacked_one_for_more(scripts):
    task = scripts.task
    answers = ["", "abc", "abca", "abcd", "dcba", "bbbb", "fffff", "abcab", "abcabbbbbbb"]
    for word, answer in itertools.product(("abca", "ffff"), answers):
        for file, group in (("grpo.yaml", "rewards"), ("answers.yaml", "rewards"), ("measure.yaml", "rewards"),
                            ("hacked.yaml", "judge")):  # fmt: skip
            assert paid(file, group, word, answer, task) == pytest.approx(task.worth(word, answer)), (file, answer)
    assert task.worth("abca", "abcd") == 0.75 and task.worth("abca", "abcab") == 0
    assert paid("hacked.yaml", "rewards", "abca", "abcabbbbbbb", task) == pytest.approx(2)  # the hack: 11 and the end
    assert paid("hacked.yaml", "rewards", "abca", "abca", task) == pytest.approx(1 + 5 / 12)


def test_the_best_expected_reward_is_found_over_all_answers(scripts):
    rows = [scripts.task.prompt_row(word) for word in ("abca", "ffff")]
    assert scripts.task.best_expected(rows) == 1.0
    unreachable = [*rows, scripts.task.prompt_row("zzab")]  # the control: two letters that no answer can have
    assert scripts.task.best_expected(unreachable) == pytest.approx((1 + 1 + 0.5) / 3)


def test_a_line_of_the_table_is_what_a_direct_computation_gives(scripts, tmp_path):
    random, seeds, rows_of = np.random.default_rng(3), [], {}
    for seed in (1, 2):
        rows = []
        for prompt, n in itertools.product(range(7), range(3)):
            length = int(random.integers(1, 6))
            old, reference = -random.random(length), -2 * random.random(length)
            rows.append(
                {
                    "prompt": f"val.jsonl, line {prompt}", "token_ids": [n] * length, "old": old.tolist(),
                    "reference": reference.tolist(), "entropy": random.random(length).tolist(),
                    "reward": float(random.random()),
                }
            )  # fmt: skip
        path = tmp_path / f"{seed}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        seeds.append(scripts.table.measured_answers(path, 10.0 * seed, 99))
        rows_of[seed] = rows
    line = scripts.table.row("made up", seeds, optimum=0.8)
    assert line["seeds"] == pytest.approx([np.mean([r["reward"] for r in rows_of[s]]) / 0.8 for s in (1, 2)])
    assert line["share"] == pytest.approx(np.mean(line["seeds"]))

    def flat(rows: list[dict[str, Any]], key: str) -> np.ndarray:
        return np.concatenate([row[key] for row in rows])

    away = [flat(rows, "old").mean() - flat(rows, "reference").mean() for rows in rows_of.values()]
    assert line["kl"] == pytest.approx(np.mean(away))
    assert line["entropy"] == pytest.approx(np.mean([flat(rows, "entropy").mean() for rows in rows_of.values()]))
    lengths = [np.mean([len(row["token_ids"]) for row in rows]) for rows in rows_of.values()]
    assert line["tokens"] == pytest.approx(np.mean(lengths)) and line["cpu_seconds"] == 15.0 and line["samples"] == 99
    by_prompt = np.array([[row["reward"] for row in rows_of[s]] for s in (1, 2)]).reshape(2, 7, 3).mean((0, 2)) / 0.8
    error = by_prompt.std(ddof=0) / math.sqrt(7)  # the bootstrap of a mean has this deviation
    low, high = line["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15) and low < line["share"] < high


def test_the_best_of_n_is_worth_what_its_answers_are(scripts, tmp_path):
    write = scripts.task.write_rows
    prompts = [scripts.task.prompt_row(word) for word in ("abca", "ffff", "bcde")]
    write(tmp_path / "val.jsonl", prompts)
    kept = [{"messages": [*row["messages"], scripts.task.said(answer)], "reward": 9.0}
            for row, answer in zip(prompts, ("abcb", "fffff"), strict=False)]  # fmt: skip
    write(tmp_path / "best.jsonl", kept)
    found = scripts.table.measured_best(tmp_path / "best.jsonl", tmp_path / "val.jsonl", 16, 1.0, 5)
    assert sorted(found.worth.values()) == [0.0, 0.0, 0.75]  # too long, none kept, one letter wrong
    assert found.tokens == 5.5 and found.kl == pytest.approx((math.log(16) - 15 / 16) / 5.5) and found.kl_is_bound


def test_pairs_are_two_answers_to_one_prompt_the_better_first(scripts, tmp_path):
    rows = [{"messages": [*scripts.task.asked(word), scripts.task.said(answer)],
             "reward": scripts.task.worth(word, answer)}
            for word in ("abca", "ffff") for answer in ("abca", "abcb", "ffff", "f", "ab", "acca")]  # fmt: skip
    scripts.task.write_rows(tmp_path / "answers.jsonl", rows)
    n = scripts.task.write_pairs(tmp_path / "answers.jsonl", tmp_path / "pairs.jsonl", seed=1)
    pairs = scripts.task.read_rows(tmp_path / "pairs.jsonl")
    assert n == len(pairs) > 5
    for pair in pairs:
        word = pair["prompt"][0]["content"]
        better, worse = (scripts.task.worth(word, pair[side][0]["content"]) for side in ("chosen", "rejected"))
        assert better > worse


def made_up(scripts: SimpleNamespace) -> dict[str, Any]:
    one = scripts.table.Measured({"line 1": 0.5, "line 2": 1.0}, 0.123, 0.4, 5.0, 12.0, 3200)
    best = scripts.table.Measured({"line 1": 1.0, "line 2": 1.0}, 0.35, None, 5.0, 3.0, 3200, 16, True)
    figures = dict.fromkeys(("reward", "judge", "answer_tokens", "entropy", "kl", "repetition"), 0.25)
    arms = [
        {
            "arm": name, "rollouts": [figures, figures], "alarms": n, "first_alarm": n or None,
            "alarm_text": "what is rewarded <b>" * n, "last_answer": "<abc>",
        }
        for name, n in (("a", 1), ("b", 0))
    ]  # fmt: skip
    return {"optimum": 1.0, "seeds": [1], "reward_accuracy": [0.9], "base_cpu_seconds": 30.0, "hacking": arms,
            "methods": [scripts.table.row("DPO", [one], 1.0), scripts.table.row("best", [best], 1.0)]}  # fmt: skip


def test_the_page_shows_the_figures_and_loads_nothing(scripts):
    page = scripts.page.page(made_up(scripts))
    for text in ("75.0 %", "100.0 %", "≤ 0.350", "0.123", "3,200 + 16 an answer", "rollout 1", "&lt;abc&gt;"):
        assert text in page, text
    assert not re.search(r"<(script|link|img)|https?://|<b>", page)


@pytest.mark.slow
def test_each_method_reaches_the_known_best_and_hacking_is_caught(scripts, tmp_path):
    """One seed of the whole comparison; about four minutes of one core."""
    found = scripts.compare.main(tmp_path, [1])
    share = {one["method"]: one["share"] for one in found["methods"]}
    assert share["base model"] < 0.6  # the control: what everything starts from
    for name in ("DPO", "PPO, learned reward", "GRPO, verifiable reward"):
        assert share[name] >= 0.95, share
    assert share["best of n by the learned reward"] > share["base model"] + 0.2
    hacked, held = found["hacking"]
    first, last = hacked["rollouts"][0], hacked["rollouts"][-1]
    assert last["reward"] > first["reward"] + 0.3 and last["judge"] < first["judge"] - 0.3
    assert hacked["alarms"] and "not what is wanted" in hacked["alarm_text"]
    first, last = held["rollouts"][0], held["rollouts"][-1]
    assert last["reward"] > first["reward"] and last["judge"] > first["judge"] and not held["alarms"]
    assert (tmp_path / "compare.html").stat().st_size > 10_000
