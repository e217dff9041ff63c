"""Prompts that are too long, over HTTP: cut as was asked, and told in a header; otherwise refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from fledge.text.chat import ChatRenderer, Message
from fledge.text.tokenizer import byte_level
from tests.serve.running import RunningServer, error_of, frames_of, running

CONTEXT = 120
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"
CUT = "x-fledge-cut-tokens"
SAID = {"seed": 3, "ignore_eos": True}
RENDERER = ChatRenderer(byte_level())
TURNS = [
    {"role": "system", "content": "Be short."},
    *({"role": role, "content": f"{n}" * 9} for n in range(9) for role in ("user", "assistant")),
    {"role": "user", "content": "And now?"},
]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(f"stub:context_tokens={CONTEXT}") as started:
        yield started


@pytest.fixture(scope="module")
def cutting() -> Iterator[RunningServer]:
    with running(f"stub:context_tokens={CONTEXT}", "engine.overflow=truncate") as started:
        yield started


def tokens_of(turns: list[dict[str, str]]) -> int:
    return len(RENDERER.render([Message(**turn) for turn in turns], generation_prompt=True).ids)


def text_of(body: dict[str, Any]) -> list[str]:
    return [one["message"]["content"] if "message" in one else one["text"] for one in body["choices"]]


ASKS = [{"truncation": "auto"}, {"overflow": "truncate"}, {"truncate_prompt_tokens": -1}]


@pytest.mark.parametrize("asks", ASKS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("over", [-1, 0, 1, 300])
def test_a_text_is_cut_to_what_the_context_holds(server: RunningServer, over: int, side: str, asks: Any) -> None:
    room = CONTEXT - 20 - 1  # BOS
    text = "".join(chr(97 + n % 23) for n in range(room + over))
    by_hand = text[:room] if side == "right" else text[-room:]
    done = server.complete(text, max_tokens=20, truncation_side=side, **asks, **SAID)
    expected = server.complete(by_hand, max_tokens=20, **SAID)
    assert done.status_code == expected.status_code == 200, done.text
    assert text_of(done.json()) == text_of(expected.json()) and done.json()["usage"] == expected.json()["usage"]
    assert done.headers.get(CUT) == (str(over) if over > 0 else None) and CUT not in expected.headers
    refused = server.complete(text, max_tokens=20, **SAID)  # the control
    assert refused.status_code == (400 if over > 0 else 200)


def test_ids_lists_echo_and_streams_are_cut_alike(server: RunningServer) -> None:
    ids = [65 + n % 50 for n in range(300)]
    asked = {"max_tokens": 20, "truncation": "auto", "echo": True, **SAID}
    done = server.complete([ids, ids[:7]], **asked)
    expected = server.complete([ids[-100:], ids[:7]], **{**asked, "truncation": "disabled"})
    assert text_of(done.json()) == text_of(expected.json()) and done.headers[CUT] == "200,0"
    assert done.json()["usage"]["prompt_tokens"] == 107
    open_ended = server.complete("y" * 300, truncation="auto", **SAID)
    assert open_ended.json()["usage"] == {
        "prompt_tokens": CONTEXT - 16, "completion_tokens": 16, "total_tokens": CONTEXT,
    }  # fmt: skip
    with server.client.stream("POST", TEXT_PATH, json={"prompt": "y" * 300, **asked, "stream": True}) as response:
        assert response.status_code == 200 and response.headers[CUT] == str(301 - 100)
        assert list(frames_of(response))[-1] == "[DONE]"


def test_a_number_of_tokens_cuts_whatever_fits(server: RunningServer) -> None:
    done = server.complete("abcdefgh", truncate_prompt_tokens=4, echo=True, **SAID)
    assert text_of(done.json())[0].startswith("fgh") and done.headers[CUT] == "5"
    assert done.json()["usage"]["prompt_tokens"] == 4


@pytest.mark.parametrize("n_left", range(4))
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_chat_loses_its_oldest_turns(server: RunningServer, n_left: int, over: int) -> None:
    """With `max_tokens` such that exactly so many turns fit, one token to spare, or one too few."""
    left = [*TURNS[:1], *TURNS[len(TURNS) - 1 - 2 * n_left :]]
    body = {"max_tokens": CONTEXT - tokens_of(left) + over, **SAID}
    done = server.post(CHAT_PATH, {"messages": TURNS, "truncation": "auto", **body})
    if over > 0:
        left = [left[0], *left[3:]]
    if len(left) == 1:  # the last turn alone is too much
        assert done.status_code == 400 and error_of(done)["code"] == "context_length_exceeded"
        return
    expected = server.post(CHAT_PATH, {"messages": left, **body})
    assert done.status_code == expected.status_code == 200, done.text
    assert text_of(done.json()) == text_of(expected.json()) and done.json()["usage"] == expected.json()["usage"]
    assert done.headers[CUT] == str(tokens_of(TURNS) - tokens_of(left))
    assert server.post(CHAT_PATH, {"messages": TURNS, **body}).status_code == 400  # the control


def test_the_servers_default_holds_and_a_request_overrides_it(cutting: RunningServer, server: RunningServer) -> None:
    for path, body in ((TEXT_PATH, {"prompt": "z" * 300}), (CHAT_PATH, {"messages": TURNS})):
        done = cutting.post(path, {**body, **SAID})
        assert done.status_code == 200 and int(done.headers[CUT]) > 0
        assert error_of(cutting.post(path, {**body, "truncation": "disabled"}))["code"] == "context_length_exceeded"
        assert server.post(path, {**body, **SAID}).status_code == 400


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (TEXT_PATH, {"truncation": "yes"}, "truncation"),
        (TEXT_PATH, {"truncation": True}, "truncation"),
        (TEXT_PATH, {"overflow": "shift"}, "overflow"),
        (TEXT_PATH, {"overflow": "window"}, "overflow"),
        (TEXT_PATH, {"truncation": "auto", "overflow": "refuse"}, "overflow"),
        (TEXT_PATH, {"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        (TEXT_PATH, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (TEXT_PATH, {"truncation_side": "middle"}, "truncation_side"),
        (CHAT_PATH, {"truncation_side": "right"}, "truncation_side"),
        (CHAT_PATH, {"overflow": "window"}, "overflow"),
    ],
)
def test_what_is_wrong_or_cant_be_done_is_a_400_that_names_it(
    server: RunningServer, path: str, fields: dict[str, Any], named: str
) -> None:
    sound = {"prompt": "Hi"} if path == TEXT_PATH else {"messages": TURNS[-1:]}
    response = server.post(path, {**sound, **fields})
    assert response.status_code == 400 and error_of(response)["param"] == named
