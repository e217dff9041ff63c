"""Reading requests: whatever JSON comes in, the outcome is a call with sound values or a RequestError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fledge.engine.request import Sampling
from fledge.errors import RequestError
from fledge.serve.body import parse_object
from fledge.serve.fields import count_unknown
from fledge.serve.wire import CHAT_FIELDS, COMPLETION_FIELDS, Call, read_chat, read_completion

MESSAGES = [{"role": "user", "content": "Hi"}]

scalars = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8)
values = some.recursive(
    scalars,
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
near_misses = some.sampled_from(
    [0, 1, -1, 2, 20, 21, 0.5, "1", "", True, [], {}, [""], ["a"], {"65": 1}, [1, 2], [[1]], None]
)
message = some.fixed_dictionaries(
    {}, optional={"role": values | some.sampled_from(["user", "robot"]), "content": values}
)


def bodies(known: frozenset[str]) -> some.SearchStrategy[dict[str, Any]]:
    names = some.sampled_from(sorted(known)) | some.text(max_size=12)
    sound = {"messages": some.just(MESSAGES) | some.lists(message | values, max_size=3) | values,
             "prompt": some.just("Hi") | near_misses | values}  # fmt: skip
    return some.tuples(some.fixed_dictionaries(sound), some.dictionaries(names, near_misses | values, max_size=5)).map(
        lambda pair: {**pair[1], **pair[0]}
    )


@pytest.mark.parametrize(("read", "known"), [(read_chat, CHAT_FIELDS), (read_completion, COMPLETION_FIELDS)])
@settings(max_examples=150)
@given(data=some.data())
def test_any_json_is_a_sound_call_or_a_request_error(read: Any, known: frozenset[str], data: some.DataObject) -> None:
    body = json.dumps(data.draw(bodies(known))).encode()
    try:
        tree = parse_object(body)
        count_unknown(tree, known)
        call: Call = read(tree)
        call.check_ranges(263)
        sampling = call.sampling_for(5, 100, 263, 16)
    except RequestError as error:
        assert len(str(error)) < 500
        return
    assert 1 <= sampling.max_tokens <= 95
    assert sampling == sampling.validated(263)


def test_the_fields_are_read() -> None:
    """The control: the same readers take a full request."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = read_chat(
        {"messages": [*MESSAGES, {"role": "developer", "content": parts}],
         "model": "m", "max_completion_tokens": 9, "temperature": 0, "top_p": 0.5, "n": 2, "stop": "x", "seed": -3,
         "presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": -100}, "logprobs": True, "top_logprobs": 4,
         "stream": True, "stream_options": {"include_usage": True}, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.1,
         "stop_token_ids": [1, 2], "ignore_eos": True, "min_tokens": 3}
    )  # fmt: skip
    assert call.messages[1].role == "system" and call.messages[1].content == "ab"
    assert (call.model, call.stream, call.include_usage) == ("m", True, True)
    assert call.sampling_for(5, 100, 263, None) == Sampling(
        max_tokens=9, min_tokens=3, temperature=0, top_k=7, top_p=0.5, min_p=0.1, repetition_penalty=1.1,
        presence_penalty=1, frequency_penalty=-1, logit_bias=((5, -100.0),), seed=-3, n=2, stop=("x",),
        stop_token_ids=(1, 2), ignore_eos=True, logprobs=4,
    )  # fmt: skip


def test_without_max_tokens_an_answer_gets_what_is_left_or_less() -> None:
    call = read_completion({"prompt": "x"})
    assert call.sampling_for(5, 100, 263, 16).max_tokens == 16
    assert call.sampling_for(90, 100, 263, 16).max_tokens == 10
    assert call.sampling_for(5, 100, 263, None).max_tokens == 95
    with pytest.raises(RequestError):
        call.sampling_for(100, 100, 263, 16)


def test_two_names_for_one_limit_must_agree() -> None:
    assert read_chat({"messages": MESSAGES, "max_tokens": 5, "max_completion_tokens": 5}).max_tokens == 5
    with pytest.raises(RequestError, match="differs"):
        read_chat({"messages": MESSAGES, "max_tokens": 5, "max_completion_tokens": 6})
