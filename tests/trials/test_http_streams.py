"""Trials 49, 50, 52 and 54: characters and stop strings that span tokens, the stream's form, log-probabilities.

The stub's tokens are bytes, so every character beyond ASCII and every stop string spans tokens.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.serve.running import CHAT, RunningServer, finish_reasons, frames_of, joined, running

SCRIPT = "Grüße, 世界! 👩‍👩‍👧 naïve — done."
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT_PATH: CHAT, TEXT_PATH: {"prompt": "Hi", "max_tokens": 100}}
END_ID = 262  # <|end|>, the last of the byte-level tokenizer's special tokens


@pytest.fixture(scope="module")
def scripted() -> Iterator[RunningServer]:
    with running(f"stub:text={quote(SCRIPT)}&delay_ms=2") as started:
        yield started


@pytest.fixture(scope="module")
def free() -> Iterator[RunningServer]:
    """Its logits are a hash of the context: different seeds, different answers."""
    with running("stub:delay_ms=1") as started:
        yield started


def whole(server: RunningServer, path: str, **fields: Any) -> dict[str, Any]:
    response = server.post(path, {**BODIES[path], **fields})
    assert response.status_code == 200, response.text
    return response.json()


def text_of(reply: dict[str, Any], index: int = 0) -> str:
    choice = reply["choices"][index]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("path", BODIES)
def test_49_characters_that_span_tokens_arrive_whole(scripted: RunningServer, path: str) -> None:
    chunks = scripted.stream(path, BODIES[path])
    assert text_of(whole(scripted, path)) == joined(chunks) == SCRIPT
    assert len([chunk for chunk in chunks if chunk["choices"]]) > 10
    for chunk in chunks:
        assert "\ufffd" not in json.dumps(chunk, ensure_ascii=False)


@pytest.mark.parametrize("path", BODIES)
def test_49_an_answer_cut_inside_a_character_ends_before_it(scripted: RunningServer, path: str) -> None:
    encoded = SCRIPT.encode()
    for length in (3, 4, 5, 6, 10, 11, 12, 18, 19, 20, 21):  # around ü and ß, 世, the joined family
        expected = encoded[:length].decode("utf-8", "ignore")
        reply = whole(scripted, path, max_tokens=length)
        chunks = scripted.stream(path, {**BODIES[path], "max_tokens": length})
        assert text_of(reply) == joined(chunks) == expected
        assert reply["usage"]["completion_tokens"] == length
        assert reply["choices"][0]["finish_reason"] == "length" == finish_reasons(chunks)[0]


@pytest.mark.parametrize("path", BODIES)
def test_49_bytes_that_are_no_utf8_dont_stall(free: RunningServer, path: str) -> None:
    """A bias forces one byte for ever: a continuation without a beginning, then a beginning without continuation."""
    for byte in (0x80, 0xE2, 0xFF):
        fields = {"logit_bias": {str(byte): 100}, "temperature": 0, "max_tokens": 9}
        reply, chunks = whole(free, path, **fields), free.stream(path, {**BODIES[path], **fields})
        assert text_of(reply) == joined(chunks)
        assert set(joined(chunks)) == {"\ufffd"}
        assert reply["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("世界", "Grüße, "),
        (["界!"], "Grüße, 世"),
        (["nowhere", "naï"], "Grüße, 世界! 👩‍👩‍👧 "),
        (["— done", "done."], "Grüße, 世界! 👩‍👩‍👧 naïve "),
        ("G", ""),
        ("done.", SCRIPT[:-5]),
        ("done..", SCRIPT),
        (["Grüßen", "üß"], "Gr"),
    ],
)
def test_50_nothing_of_a_stop_string_gets_out(
    scripted: RunningServer, path: str, stop: str | list[str], kept: str
) -> None:
    chunks = scripted.stream(path, {**BODIES[path], "stop": stop, "stream_options": {"include_usage": True}})
    reply = whole(scripted, path, stop=stop)
    assert text_of(reply) == joined(chunks) == kept
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert finish_reasons(chunks) == ["stop"]
    stops = [stop] if isinstance(stop, str) else stop
    ends = [SCRIPT.find(text) + len(text) for text in stops if text in SCRIPT]
    generated = len(SCRIPT[: min(ends)].encode()) if ends else len(SCRIPT.encode()) + 1  # and <|end|>
    assert reply["usage"]["completion_tokens"] == chunks[-1]["usage"]["completion_tokens"] == generated


def test_50_log_probabilities_dont_tell_the_stop_string_either(scripted: RunningServer) -> None:
    fields = {"stop": "世界", "logprobs": True, "top_logprobs": 0}
    content = whole(scripted, CHAT_PATH, **fields)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in content).decode() == "Grüße, "
    streamed = [
        one
        for chunk in scripted.stream(CHAT_PATH, {**CHAT, **fields})
        for choice in chunk["choices"]
        for one in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert streamed == content
    plain = whole(scripted, CHAT_PATH, logprobs=True)["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in plain).decode() == SCRIPT  # the control: without a stop all are told


@pytest.mark.parametrize("path", BODIES)
def test_52_a_stream_has_its_form(scripted: RunningServer, path: str) -> None:
    body = {**BODIES[path], "n": 3, "stream_options": {"include_usage": True}}
    chunks = scripted.stream(path, body)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for index in range(3):
        assert finish_reasons(chunks, index) == ["stop"]
        assert joined(chunks, index) == SCRIPT
        last = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index][-1]
        assert last["finish_reason"] == "stop"
    if path == CHAT_PATH:
        opening = [choice["delta"] for chunk in chunks[:3] for choice in chunk["choices"]]
        assert [delta["role"] for delta in opening] == ["assistant"] * 3
        assert all("role" not in choice["delta"] for chunk in chunks[3:] for choice in chunk["choices"])
    reply = whole(scripted, path, n=3)
    assert chunks[-1]["usage"] == reply["usage"]
    assert reply["usage"]["completion_tokens"] == 3 * (len(SCRIPT.encode()) + 1)
    assert "usage" not in scripted.stream(path, BODIES[path])[0]


def test_52_the_stream_is_not_held_back_to_its_end(scripted: RunningServer) -> None:
    began = time.perf_counter()
    arrivals = []
    with scripted.client.stream("POST", CHAT_PATH, json={**CHAT, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-cache"
        for _ in frames_of(response):
            arrivals.append(time.perf_counter() - began)
    assert arrivals[0] < 0.5 * arrivals[-1]
    assert arrivals[-1] > 0.002 * len(SCRIPT.encode())


def test_a_request_without_a_seed_tells_the_seed_that_repeats_it(free: RunningServer) -> None:
    first = free.complete(max_tokens=20)
    second = free.complete(max_tokens=20)
    assert first.headers["x-fledge-seed"] != second.headers["x-fledge-seed"]
    assert text_of(first.json()) != text_of(second.json())
    again = free.complete(max_tokens=20, seed=int(first.headers["x-fledge-seed"]))
    assert text_of(again.json()) == text_of(first.json())
    assert again.json()["system_fingerprint"] == first.json()["system_fingerprint"]


def test_a_seed_decides_each_choice_and_each_prompt(free: RunningServer) -> None:
    three = free.complete(max_tokens=20, seed=5, n=3).json()
    assert len({text_of(three, index) for index in range(3)}) == 3
    assert text_of(free.complete(max_tokens=20, seed=5).json()) == text_of(three)
    pair = free.complete(["Hi", "Other"], max_tokens=20, seed=5, n=2).json()
    assert [choice["index"] for choice in pair["choices"]] == [0, 1, 2, 3]
    assert text_of(pair, 0) == text_of(three, 0)
    assert text_of(pair, 2) == text_of(free.complete("Other", max_tokens=20, seed=5).json())
    same = free.complete(["Hi"] * 3, max_tokens=20)
    assert len({text_of(same.json(), index) for index in range(3)}) == 3  # without a seed each prompt has its own
    seeds = [int(seed) for seed in same.headers["x-fledge-seed"].split(",")]
    assert text_of(free.complete(max_tokens=20, seed=seeds[1]).json()) == text_of(same.json(), 1)


def test_prompts_may_be_ids(free: RunningServer) -> None:
    bos = 256
    expected = free.complete("Hi", max_tokens=8, seed=1).json()
    given = free.complete([bos, *b"Hi"], max_tokens=8, seed=1).json()
    assert (text_of(given), given["usage"]) == (text_of(expected), expected["usage"])
    without = free.complete("Hi", max_tokens=8, seed=1, add_special_tokens=False).json()
    assert without["usage"]["prompt_tokens"] == 2
    assert text_of(without) == text_of(free.complete([list(b"Hi")], max_tokens=8, seed=1).json()) != text_of(expected)


def test_54_chat_log_probabilities(free: RunningServer) -> None:
    fields = {"logprobs": True, "top_logprobs": 3, "max_tokens": 12, "seed": 3}
    choice = whole(free, CHAT_PATH, **fields)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == choice["message"]["content"]
    for one in content:
        assert bytes(one["bytes"]).decode() == one["token"]
        values = [top["logprob"] for top in one["top_logprobs"]]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert values[0] >= one["logprob"]
        assert sum(map(math.exp, values)) <= 1
    for k in (0, 20):
        first = whole(free, CHAT_PATH, **{**fields, "top_logprobs": k})["choices"][0]["logprobs"]["content"][0]
        assert len(first["top_logprobs"]) == k
    assert whole(free, CHAT_PATH, max_tokens=3)["choices"][0]["logprobs"] is None


def test_54_log_probabilities_are_those_before_temperature(free: RunningServer) -> None:
    """The same token after the same context has the same figure, however it was chosen."""
    found = {}
    for temperature in (0, 0.3, 2):
        reply = whole(free, TEXT_PATH, logprobs=5, max_tokens=1, temperature=temperature, logit_bias={"65": 100})
        assert reply["choices"][0]["text"] == "A"
        found[temperature] = reply["choices"][0]["logprobs"]["token_logprobs"][0]
    assert len(set(found.values())) == 1
    assert found[0] < -1  # of the model's own distribution: the bias made it certain


def test_54_completions_log_probabilities_and_echo(free: RunningServer) -> None:
    fields = {"logprobs": 2, "max_tokens": 6, "seed": 4, "echo": True}
    choice = whole(free, TEXT_PATH, **fields)["choices"][0]
    figures = choice["logprobs"]
    assert choice["text"].startswith("Hi")
    assert "".join(figures["tokens"]) == choice["text"]
    assert figures["text_offset"] == list(range(8))
    assert [len(figures[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [8] * 4
    assert all(value < 0 for value in figures["token_logprobs"])  # "H" too has one: it stands after <bos>
    assert all(2 <= len(tops) <= 3 for tops in figures["top_logprobs"])
    ids = whole(free, TEXT_PATH, **{**fields, "prompt": list(b"Hi")})["choices"][0]["logprobs"]
    assert ids["token_logprobs"][0] is None and ids["top_logprobs"][0] is None
    chunks = free.stream(TEXT_PATH, {**BODIES[TEXT_PATH], **fields})
    assert joined(chunks) == choice["text"]
    streamed: dict[str, list[Any]] = {name: [] for name in figures}
    for chunk in chunks:
        for one in chunk["choices"]:
            for name, values in (one["logprobs"] or {}).items():
                streamed[name] += values
    assert streamed == figures


def test_54_an_echoed_prompt_has_the_figures_of_its_generation(free: RunningServer) -> None:
    """Score what was generated: the same figures, computed in one pass."""
    choice = whole(free, TEXT_PATH, logprobs=0, max_tokens=6, seed=4)["choices"][0]
    scored = whole(free, TEXT_PATH, prompt="Hi" + choice["text"], logprobs=0, max_tokens=1, echo=True)["choices"][0]
    assert scored["logprobs"]["token_logprobs"][2:8] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
    other = whole(free, TEXT_PATH, prompt="Ho" + choice["text"], logprobs=0, max_tokens=1, echo=True)["choices"][0]
    assert other["logprobs"]["token_logprobs"][2:8] != pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


def test_stop_tokens_and_min_tokens(scripted: RunningServer) -> None:
    assert text_of(whole(scripted, CHAT_PATH, stop_token_ids=[ord(",")])) == "Grüße"
    reply = whole(scripted, CHAT_PATH, ignore_eos=True, max_tokens=100)
    assert text_of(reply).startswith(SCRIPT + SCRIPT[0])
    assert reply["choices"][0]["finish_reason"] == "length"
    assert text_of(whole(scripted, CHAT_PATH, logit_bias={str(END_ID): 100})) == ""
    assert len(text_of(whole(scripted, CHAT_PATH, logit_bias={str(END_ID): 100}, min_tokens=4, max_tokens=9))) >= 1
