"""What answers are rewarded for, and that rewards need what they need."""

from __future__ import annotations

import pytest

from fledge.align.rewards import REWARDS
from fledge.align.rl_config import RewardConfig
from fledge.errors import ConfigError, DataError

ROW = {"answer": "1,024.50", "tests": "assert double(2) == 4", "word": "yes"}


def reward(text: str, kind: str, ids: list[int] | None = None, **settings: object) -> float:
    return REWARDS[kind](text, ids or [], ROW, RewardConfig(kind, **settings))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("it is 1024.5", 1.0), ("1,024.50", 1.0), ("1024.5 or 7", 0.0), ("none", 0.0), ("-1024.5", 0.0), ("1024.51", 0.0)],
)
def test_the_last_number_is_compared_exactly(text, expected):
    assert reward(text, "number") == expected


@pytest.mark.parametrize(
    ("wanted", "said", "expected"),
    [(1e-05, "0.00001", 1.0), (1e-05, "-5", 0.0), (1e22, "10000000000000000000000", 1.0), (1e22, "22", 0.0),
     (300, "it is 3.0e2", 1.0), (2, "3.0e2", 0.0), (7, "7 eggs", 1.0), (7, "1e99999", 0.0)],
)  # fmt: skip
def test_numbers_with_an_exponent_are_numbers(wanted, said, expected):
    assert REWARDS["number"](said, [], {"answer": wanted}, RewardConfig("number")) == expected


def test_a_pattern_says_where_the_answer_stands():
    assert reward("9 boxes: 1024.5 of 3", "number", pattern=r"boxes: ([\d.]+)") == 1.0
    assert reward("1024.5", "number", pattern=r"boxes: ([\d.]+)") == 0.0
    assert reward(" yes\n", "text", field="word") == 1.0
    assert reward("yes no", "text", field="word") == 0.0


def test_a_format_must_be_that_of_the_whole_answer():
    pattern = r"<think>.*</think>\s*\d+"
    assert reward("<think>\nhm\n</think> 12", "regex", pattern=pattern) == 1.0
    assert reward("<think>hm</think> 12 or so", "regex", pattern=pattern) == 0.0


def test_length_falls_off_on_both_sides():
    assert [reward("", "length", [0] * n, tokens=4) for n in (4, 3, 6, 9)] == [1.0, 0.75, 0.5, 0.0]


def test_code_is_run_against_the_rows_tests():
    answer = "Sure:\n```python\ndef double(x):\n    return x + {}\n```\n"
    assert reward(answer.format("x"), "code", field="tests") == 1.0
    assert reward(answer.format("3"), "code", field="tests") == 0.0


def test_tests_are_a_text_or_a_list_of_texts():
    config = RewardConfig("code", field="tests")
    for tests, expected in ((["assert f() == 1", "assert True"], 1.0), (["assert True", "assert f() == 2"], 0.0)):
        assert REWARDS["code"]("def f():\n    return 1", [], {"tests": tests}, config) == expected
    for tests in (None, "", "  ", [], [1], {"t": "assert 0"}, 5):
        with pytest.raises(DataError, match="expected tests as 'tests' of each prompt"):
            REWARDS["code"]("garbage = 1", [], {"tests": tests}, config)
    with pytest.raises(DataError, match="expected a text as 'answer' of each prompt, got None"):
        REWARDS["text"]("None", [], {"answer": None}, RewardConfig("text"))


def test_what_a_reward_needs_is_asked_for():
    with pytest.raises(ConfigError, match=r"rewards\.pattern: expected a regular expression, got '\('"):
        RewardConfig("regex", pattern="(")
    with pytest.raises(DataError, match=r"expected 'price' in each prompt's row, got answer, tests, word"):
        reward("1", "number", field="price")
    with pytest.raises(DataError, match="expected a number as 'word'"):
        reward("1", "number", field="word")
    for kind, key in (("regex", "pattern"), ("length", "tokens"), ("model", "path")):
        with pytest.raises(ConfigError, match=rf"rewards\.{key}: expected one for kind {kind}"):
            RewardConfig(kind)
