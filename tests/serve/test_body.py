"""Bodies: what Python's JSON parser lets through and a server must not."""

from __future__ import annotations

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fledge.errors import RequestError
from fledge.serve.body import parse_object

json_values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=60)
@given(some.dictionaries(some.text(), json_values, max_size=5))
def test_every_object_of_usable_json_comes_through_unchanged(tree: dict[str, object]) -> None:
    assert parse_object(json.dumps(tree, ensure_ascii=False).encode()) == tree
    assert parse_object(json.dumps(tree).encode()) == tree


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"", None, "empty"),
        (b"  \n", None, "empty"),
        (b"{", None, "not JSON"),
        (b"[1]", None, "an array"),
        (b'"text"', None, "a string"),
        (b"null", None, "null"),
        (b"17", None, "an integer"),
        (b'{"a": 1} x', None, "not JSON"),
        (b'{"a": "\xff"}', None, "not UTF-8: byte 7"),
        (b'{"temperature": NaN}', "temperature", "finite"),
        (b'{"temperature": 1e999}', "temperature", "finite"),
        (b'{"logit_bias": {"5": -Infinity}}', "logit_bias", "logit_bias."),
        (b'{"n": ' + b"9" * 5000 + b"}", "n", "5000 digits"),
        (b'{"messages": [{"content": "abc\\ud83d"}]}', "messages", "messages[0].content: lone surrogate U+D83D at"),
        (b'{"stop": ["ok", "\\udc00"]}', "stop", "stop[1]: lone surrogate U+DC00 at character 0"),
        (b'{"a": {"\\ud800": 1}}', None, "lone surrogate"),
        (b"[" * 100_000 + b"]" * 100_000, None, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, None, "nested too deeply"),
    ],
)
def test_an_unusable_body_is_refused_with_its_place(body: bytes, param: str | None, words: str) -> None:
    began = time.perf_counter()
    with pytest.raises(RequestError, match=None) as refused:
        parse_object(body)
    assert words in str(refused.value)
    assert refused.value.param == param
    assert len(str(refused.value)) < 300
    assert time.perf_counter() - began < 1


def deep_and_wide(bottom: str) -> bytes:
    """900 mappings in each other by long keys, and many values in the last."""
    return ('{"' + "k" * 64 + '":').encode() * 900 + bottom.encode() + b"}" * 900


@pytest.mark.parametrize("bottom", [['""'] * 30_000, ['{"é": 1}'] * 15_000], ids=["texts", "keys"])
def test_a_deep_and_wide_body_costs_what_its_values_cost(bottom: list[str]) -> None:
    """Naming each value's place as it is reached takes gigabytes here: 60 kB for each of thousands."""
    shallow, deep = (f"[{','.join(bottom)}]", deep_and_wide(f"[{','.join(bottom)}]"))
    costs = []
    for body in (f'{{"k": {shallow}}}'.encode(), deep):
        tracemalloc.start()
        parse_object(body)
        costs.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert costs[1] < costs[0] + 4_000_000


def test_a_place_deep_inside_is_named_by_its_ends() -> None:
    with pytest.raises(RequestError) as refused:
        parse_object(deep_and_wide('["", 1e999]'))
    assert str(refused.value).startswith("k" * 64 + ".") and "k[1]: expected a finite number" in str(refused.value)
    assert len(str(refused.value)) < 300 and refused.value.param == "k" * 64


def test_a_surrogate_pair_is_a_character() -> None:
    """The control: the same escapes as above, paired."""
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
