"""Trials 39-42, 44, 45, 47 and 54: what callers send wrongly is a 400 that names it, quickly, and harms nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.serve.running import CHAT, RunningServer, error_of, running

CONTEXT = 200
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
PATHS = (CHAT_PATH, TEXT_PATH)
SOUND = {CHAT_PATH: CHAT, TEXT_PATH: {"prompt": "Hi"}}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(f"stub:text=All is well.&context_tokens={CONTEXT}") as started:
        yield started


def send(server: RunningServer, path: str, body: bytes, content_type: str = "application/json") -> Any:
    return server.client.post(path, content=body, headers={"content-type": content_type})


@pytest.mark.parametrize("path", PATHS)
def test_the_sound_request_is_answered(server: RunningServer, path: str) -> None:
    """The control of this file: what every case below spoils."""
    response = server.post(path, SOUND[path])
    assert response.status_code == 200
    assert "All is well." in response.text


BROKEN_BODIES = [
    b"",
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"1",
    b'{"messages": ',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"n": ' + b"7" * 5000 + b"}",
    b'{"temperature": NaN}',
    b'{"temperature": 1e999}',
    b'{"temperature": -Infinity}',
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", BROKEN_BODIES, ids=range(len(BROKEN_BODIES)))
def test_39_a_broken_body_is_a_400(server: RunningServer, path: str, body: bytes) -> None:
    began = time.perf_counter()
    response = send(server, path, body)
    assert time.perf_counter() - began < 1
    assert response.status_code == 400
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"]
)
def test_39_another_content_type_is_a_415(server: RunningServer, content_type: str) -> None:
    response = send(server, CHAT_PATH, json.dumps(CHAT).encode(), content_type)
    assert response.status_code == 415
    assert "application/json" in error_of(response)["message"]
    assert send(server, CHAT_PATH, json.dumps(CHAT).encode(), "Application/JSON; charset=utf-8").status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("field", "meant"), [("max_token", "max_tokens"), ("temprature", "temperature"), ("sead", "seed")]
)
def test_40_a_misspelt_field_is_a_400_that_names_it(server: RunningServer, path: str, field: str, meant: str) -> None:
    error = error_of(server.post(path, {**SOUND[path], field: 1}))
    assert error["param"] == field
    assert meant in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_40_vendors_extras_are_ignored_and_counted(server: RunningServer, path: str) -> None:
    before = server.metric("fledge_unknown_fields_total")
    extras = {"keep_alive": 5, "cache_prompt": True, "x_trace": {"a": 1}}
    assert server.post(path, {**SOUND[path], **extras}).status_code == 200
    assert server.metric("fledge_unknown_fields_total") == before + len(extras)


WRONG_VALUES: list[tuple[str, Any]] = [
    ("temperature", -1),
    ("temperature", "0.7"),
    ("temperature", True),
    ("temperature", [1]),
    ("temperature", 1000),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_p", "1"),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("max_tokens", 2**63),
    ("max_tokens", 16.0),
    ("max_tokens", True),
    ("max_tokens", "16"),
    ("n", 0),
    ("n", -1),
    ("n", 1.5),
    ("n", 17),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("stop", ""),
    ("stop", ["a", ""]),
    ("stop", 5),
    ("stop", [5]),
    ("logit_bias", {"999999999": 1}),
    ("logit_bias", {"-1": 1}),
    ("logit_bias", {"x": 1}),
    ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "1"}),
    ("logit_bias", [1]),
    ("seed", 2**70),
    ("seed", 1.5),
    ("seed", "1"),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("repetition_penalty", 0),
    ("min_p", 1.5),
    ("top_k", -2),
    ("min_tokens", -1),
    ("stop_token_ids", [10**9]),
    ("stop_token_ids", ["1"]),
    ("stop_token_ids", [1] * 241),
    ("stop", "x" * 1025),
    ("stop", ["x" * 1025]),
    ("logit_bias", {str(i): 1 for i in range(1025)}),
    ("ignore_eos", 1),
    ("stream", "yes"),
    ("stream", 1),
    ("stream_options", {"include_usage": True}),
    ("model", 5),
    ("user", 5),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("param", "value"), WRONG_VALUES, ids=lambda value: json.dumps(value)[:24])
def test_41_a_wrong_value_is_a_400_that_names_the_parameter(
    server: RunningServer, path: str, param: str, value: Any
) -> None:
    response = server.post(path, {**SOUND[path], param: value})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("param", "literal"), [("temperature", b"NaN"), ("top_p", b"1e999"), ("max_tokens", b"9" * 5000)]
)
def test_41_what_is_no_json_number_names_the_parameter_too(
    server: RunningServer, path: str, param: str, literal: bytes
) -> None:
    body = json.dumps(SOUND[path])[:-1].encode() + b', "' + param.encode() + b'": ' + literal + b"}"
    assert error_of(send(server, path, body))["param"] == param


WRONG_MESSAGES: list[Any] = [
    None,
    [],
    "Hi",
    ["Hi"],
    [{}],
    [{"role": "user"}],
    [{"role": "robot", "content": "x"}],
    [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}]}],
    [{"role": "user", "content": ["x"]}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}],
]
WRONG_PROMPTS: list[Any] = [
    None,
    [],
    {},
    5,
    [[]],
    ["a", 5],
    [1, "a"],
    [[1], "a"],
    [-1],
    [10**9],
    [1.0],
    [True],
    [[[1]]],
]


@pytest.mark.parametrize("messages", WRONG_MESSAGES, ids=range(len(WRONG_MESSAGES)))
def test_41_wrong_messages_are_a_400(server: RunningServer, messages: Any) -> None:
    response = server.post(CHAT_PATH, {"messages": messages})
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages"


@pytest.mark.parametrize("prompt", WRONG_PROMPTS, ids=range(len(WRONG_PROMPTS)))
def test_41_wrong_prompts_are_a_400(server: RunningServer, prompt: Any) -> None:
    response = server.post(TEXT_PATH, {"prompt": prompt})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("fields", [{"n": 10**9}, {"n": 10**9, "best_of": 10**9}, {"n": 2**62}], ids=str)
def test_42_an_n_bomb_costs_nothing(server: RunningServer, path: str, fields: dict[str, int]) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    times = []
    for _ in range(3):
        began = time.perf_counter()
        response = server.post(path, {**SOUND[path], **fields})
        times.append(time.perf_counter() - began)
        assert response.status_code == 400
        assert error_of(response)["param"] == "n"
    assert min(times) < 0.05
    assert process.memory_info().rss - before < 20 << 20


BOMBS: list[tuple[str, Any]] = [
    ("stop", "x" * (7 << 20)),
    ("stop", ["x" * (7 << 18)] * 4),
    ("stop", ["x"] * (1 << 20)),
    ("stop_token_ids", [7] * (2 << 20)),
    ("logit_bias", {str(i): 1 for i in range(1 << 18)}),
    ("prompt", [7] * (2 << 20)),
]


@pytest.mark.parametrize(("param", "value"), BOMBS, ids=[f"{param}-{i}" for i, (param, _) in enumerate(BOMBS)])
def test_42_long_lists_and_stops_cost_their_transport_alone(server: RunningServer, param: str, value: Any) -> None:
    """Whoever sends megabytes waits for their parsing; the engine and its other callers don't."""
    body = {"prompt": "Hi", "n": 16, param: value}
    bomb = threading.Thread(target=server.post, args=(TEXT_PATH, body))
    answered = []
    with httpx.Client(base_url=server.url, trust_env=False, timeout=20) as other:
        bomb.start()
        while bomb.is_alive():
            began = time.perf_counter()
            assert other.post(TEXT_PATH, json={"prompt": "Hi", "max_tokens": 2}).status_code == 200
            answered.append(time.perf_counter() - began)
        bomb.join()
    assert max(answered) < 1
    response = server.post(TEXT_PATH, body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert len(response.content) < 500


def test_42_as_much_as_may_be_asked_for_is_served(server: RunningServer) -> None:
    """The control: every one of these at its limit."""
    largest = {
        "stop": ["x" * 1024] * 4,
        "stop_token_ids": list(range(240)),
        "logit_bias": {str(i): -1 for i in range(263)},
    }
    assert server.complete(n=16, max_tokens=2, **largest).status_code == 200


def test_42_best_of_alone_and_many_prompts_times_n_are_no_way_around(server: RunningServer) -> None:
    assert error_of(server.complete(best_of=10**9))["param"] == "best_of"
    assert error_of(server.complete(["x"] * 64, n=16))["param"] == "prompt"
    assert error_of(server.complete(["x"] * 10_000))["param"] == "prompt"


def test_42_others_are_served_meanwhile(server: RunningServer) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            server.chat(n=10**9)

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            began = time.perf_counter()
            assert server.chat().status_code == 200
            assert time.perf_counter() - began < 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [CONTEXT + 1, 100 * CONTEXT])
def test_44_a_prompt_beyond_the_context_is_a_400_with_both_numbers(
    server: RunningServer, length: int, stream: bool
) -> None:
    """A byte is a token here; chat adds <bos>, the role, the end and the head of the answer."""
    generated = server.metric("fledge_generation_tokens_total")
    for path, body in (
        (TEXT_PATH, {"prompt": "x" * (length - 1)}),
        (TEXT_PATH, {"prompt": [65] * length}),
        (CHAT_PATH, {"messages": [{"role": "user", "content": "x" * (length - 4)}]}),
    ):
        response = server.post(path, {**body, "stream": stream})
        assert response.status_code == 400
        error = error_of(response)
        assert error["param"] in body
        assert error["code"] == "context_length_exceeded"
        assert str(CONTEXT) in error["message"] and str(length) in error["message"]
    assert server.metric("fledge_generation_tokens_total") == generated


EDGES = [(-1, 200), (0, 200), (1, 400)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_45_prompt_and_max_tokens_may_fill_the_context_exactly(server: RunningServer, path: str, stream: bool) -> None:
    used = server.post(path, {**SOUND[path], "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    limits = ["max_tokens", "max_completion_tokens"] if path == CHAT_PATH else ["max_tokens"]
    for over, status, limit in [(over, status, name) for over, status in EDGES for name in limits]:
        body = {**SOUND[path], limit: CONTEXT - used + over, "stream": stream}
        response = server.post(path, body)
        assert response.status_code == status, response.text
        if status == 400:
            error = error_of(response)
            assert error["code"] == "context_length_exceeded"
            assert str(CONTEXT) in error["message"] and str(CONTEXT + 1) in error["message"]
            assert error["param"] == limit and limit in error["message"]


def test_45_the_context_is_really_filled(server: RunningServer) -> None:
    usage = server.chat(ignore_eos=True, max_completion_tokens=CONTEXT - 6).json()["usage"]
    assert usage == {"prompt_tokens": 6, "completion_tokens": CONTEXT - 6, "total_tokens": CONTEXT}
    open_ended = server.chat(ignore_eos=True).json()
    assert open_ended["usage"]["total_tokens"] == CONTEXT
    assert open_ended["choices"][0]["finish_reason"] == "length"
    assert server.complete(ignore_eos=True).json()["usage"]["completion_tokens"] == 16  # OpenAI's default there


@pytest.mark.parametrize("stream", ["false", "true"])
@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (CHAT_PATH, r'{"messages": [{"role": "user", "content": "ab\ud83d"}]', "messages[0].content"),
        (CHAT_PATH, r'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\udc00"}]}]', "messages[0]"),
        (TEXT_PATH, r'{"prompt": "ab\ud83d"', "prompt"),
        (TEXT_PATH, r'{"prompt": ["x", "ab\ud83dcd"]', "prompt[1]"),
        (TEXT_PATH, r'{"prompt": "x", "stop": "\udfff"', "stop"),
        (TEXT_PATH, r'{"prompt": "x", "x_extra": {"\ud800": 1}', "lone surrogate"),
    ],
)
def test_47_a_lone_surrogate_is_a_400_with_its_place(
    server: RunningServer, path: str, body: str, place: str, stream: str
) -> None:
    response = send(server, path, f'{body}, "stream": {stream}}}'.encode())
    assert response.status_code == 400
    assert place in error_of(response)["message"]
    assert send(server, TEXT_PATH, rb'{"prompt": "\ud83d\ude00"}').status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT_PATH, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT_PATH, {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        (CHAT_PATH, {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        (CHAT_PATH, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT_PATH, {"logprobs": 5}, "logprobs"),
        (TEXT_PATH, {"logprobs": 21}, "logprobs"),
        (TEXT_PATH, {"logprobs": -1}, "logprobs"),
        (TEXT_PATH, {"logprobs": [[1]]}, "logprobs"),
        (TEXT_PATH, {"logprobs": True}, "logprobs"),
        (TEXT_PATH, {"stop_token_ids": [[1]]}, "stop_token_ids"),
        (TEXT_PATH, {"stop_token_ids": [263]}, "stop_token_ids"),
    ],
    ids=str,
)
def test_54_impossible_logprobs_are_a_400(server: RunningServer, path: str, fields: dict[str, Any], param: str) -> None:
    response = server.post(path, {**SOUND[path], **fields})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


def test_an_unknown_model_is_a_404(server: RunningServer) -> None:
    response = server.chat(model="gpt-99\n\x1b[31m")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"
    assert "\x1b" not in response.json()["error"]["message"]
    assert server.chat(model="stub").status_code == 200
    assert server.client.get("/v1/models/stub").json()["id"] == "stub"
    assert server.client.get("/v1/models/other").status_code == 404


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
        {"functions": [{}]},
        {"modalities": ["audio"]},
    ],
    ids=str,
)
def test_what_would_change_the_answer_is_refused_not_ignored(server: RunningServer, fields: dict[str, Any]) -> None:
    error = error_of(server.chat(**fields))
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == next(iter(fields))
    assert server.chat(tools=[], tool_choice="auto", response_format={"type": "text"}).status_code == 200
