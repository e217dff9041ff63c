"""Unknown fields: vendors' extras pass, misspellings don't."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fledge.errors import RequestError
from fledge.serve.fields import VENDOR_FIELDS, Fields, count_unknown, edit_distance
from fledge.serve.wire import CHAT_FIELDS, COMPLETION_FIELDS

few_letters = some.text("abc", max_size=7)


@cache
def plain_distance(left: str, right: str) -> int:
    """Optimal string alignment by its definition."""
    if not left or not right:
        return len(left) + len(right)
    found = [
        plain_distance(left[1:], right) + 1,
        plain_distance(left, right[1:]) + 1,
        plain_distance(left[1:], right[1:]) + (left[0] != right[0]),
    ]
    if len(left) > 1 and len(right) > 1 and left[:2] == right[1::-1]:
        found.append(plain_distance(left[2:], right[2:]) + 1)
    return min(found)


@given(few_letters, few_letters)
def test_the_edit_distance_is_its_definitions(left: str, right: str) -> None:
    assert edit_distance(left, right, 20) == plain_distance(left, right)
    assert edit_distance(left, right, 2) == min(3, plain_distance(left, right))


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("max_token", "max_tokens"),
        ("max_tokns", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("temprature", "temperature"),
        ("Temperature", "temperature"),
        ("tempreture", "temperature"),
        ("topp", "top_p"),
        ("sead", "seed"),
        ("stpo", "stop"),
        ("steam", "stream"),
        ("message", "messages"),
        ("max_completion_token", "max_completion_tokens"),
        ("frequence_penalty", "frequency_penalty"),
        ("repetition_penality", "repetition_penalty"),
    ],
)
def test_a_misspelt_standard_field_is_named(field: str, meant: str) -> None:
    with pytest.raises(RequestError, match=rf"{field}: unknown field; did you mean {meant}\?") as refused:
        count_unknown({"prompt": "x", field: 1}, CHAT_FIELDS)
    assert refused.value.param == field


def test_it_is_no_misspelling_when_the_standard_field_is_there_too() -> None:
    assert count_unknown({"max_tokens": 1, "max_token": 1}, CHAT_FIELDS) == 1


def test_vendors_extras_are_ignored_and_counted() -> None:
    extras = {name: 1 for name in VENDOR_FIELDS} | {"x_my_trace": 1, "zz": 2}
    assert count_unknown({"model": "m", **extras}, CHAT_FIELDS) == len(extras)
    assert count_unknown({name: 1 for name in COMPLETION_FIELDS}, COMPLETION_FIELDS) == 0
    with pytest.raises(RequestError, match="strict"):
        count_unknown({"x_my_trace": 1}, CHAT_FIELDS, strict=True)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("integer", True), ("integer", 16.0), ("integer", "16"), ("number", "0.7"), ("number", False), ("flag", 1),
     ("flag", "true"), ("text", 5), ("array", "x"), ("mapping", [])],
)  # fmt: skip
def test_no_value_is_coerced(kind: str, value: object) -> None:
    reader = getattr(Fields({"name": value}), kind)
    with pytest.raises(RequestError, match="^name: expected"):
        reader("name", 0) if kind in ("number",) else reader("name")
    absent = getattr(Fields({"name": None}), kind)
    assert not (absent("name", 0) if kind == "number" else absent("name"))
