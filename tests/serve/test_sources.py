"""A tiny T5 behind the server: prompts are sources, and what is said is what its engine says alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fledge.engine.load import load_engine
from fledge.engine.overflow import LongInput
from fledge.engine.request import Completion, Request, Sampling
from fledge.model.config import ShapeConfig
from fledge.model.families import family
from fledge.model.folder import save_model
from fledge.model.init import initialise
from fledge.model.transformer import build
from fledge.serve.served import reads_source
from fledge.text.tokenizer import byte_level
from tests.serve.running import CHAT, RunningServer, running

TOKENIZER = byte_level()
CONTEXT = 64
TEXTS = ("Read this, then write.", "Another text.")
SAID = {"temperature": 0.9, "seed": 3, "max_tokens": 10, "ignore_eos": True, "logprobs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ShapeConfig("t5", width=32, layers=2, heads=4, context_tokens=CONTEXT, vocab_size=TOKENIZER.vocab_size)
    model = initialise(build(family("t5").build(shape), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.6)
    path = tmp_path_factory.mktemp("model") / "tiny-t5"
    save_model(model, path, TOKENIZER)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running(str(folder), "engine.threads=1") as started:
        yield started


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Completion]:
    """What the engine says to each text."""
    engine = load_engine(str(folder))
    sampling = Sampling(10, temperature=0.9, seed=3, ignore_eos=True, logprobs=0)
    sources = [(*TOKENIZER.encode(text), TOKENIZER.eos_id) for text in TEXTS]
    assert reads_source(folder)
    return [engine.complete([Request("r", (), sampling, source_ids=ids)])[0] for ids in sources]


def test_a_prompt_is_the_source_and_usage_counts_it(server: RunningServer, alone: list[Completion]) -> None:
    body = server.complete(list(TEXTS), **SAID).json()
    for choice, expected in zip(body["choices"], alone, strict=True):
        assert choice["text"] == expected.text
        told = [one.logprob for one in expected.logprobs[: len(choice["logprobs"]["token_logprobs"])]]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(told, abs=1e-4)
    assert alone[0].text != alone[1].text  # the control
    n_source = sum(len(TOKENIZER.encode(text)) + 1 for text in TEXTS)
    assert body["usage"] == {"prompt_tokens": n_source, "completion_tokens": 20, "total_tokens": n_source + 20}


def test_ids_are_used_as_they_are_and_the_frame_may_be_left_out(server: RunningServer) -> None:
    ids = TOKENIZER.encode(TEXTS[0])
    framed, bare = server.complete([*ids, TOKENIZER.eos_id], **SAID).json(), server.complete(ids, **SAID).json()
    assert framed["choices"] == server.complete(TEXTS[0], **SAID).json()["choices"] != bare["choices"]
    assert bare["choices"] == server.complete(TEXTS[0], add_special_tokens=False, **SAID).json()["choices"]
    assert bare["usage"]["prompt_tokens"] == len(ids)


def test_a_stream_says_the_same(server: RunningServer, alone: list[Completion]) -> None:
    chunks = server.stream("/v1/completions", {"prompt": TEXTS[1], "stream_options": {"include_usage": True}, **SAID})
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == alone[1].text
    assert chunks[-1]["usage"]["prompt_tokens"] == len(TOKENIZER.encode(TEXTS[1])) + 1


def test_what_such_a_model_cannot_do_is_a_400_that_says_why(server: RunningServer) -> None:
    for path, body, code, says in (
        ("/v1/completions", {"prompt": "Hi", "echo": True}, "unsupported_parameter", "answers its prompt"),
        (
            "/v1/completions",
            {"prompt": "x" * CONTEXT},
            "context_length_exceeded",
            f"{CONTEXT} tokens, got {CONTEXT + 1}",
        ),
        ("/v1/completions", {"prompt": [1] * 100}, "context_length_exceeded", f"at most {CONTEXT} tokens, got 100"),
        ("/v1/completions", {"prompt": "Hi", "max_tokens": CONTEXT}, "context_length_exceeded", f"got {CONTEXT + 1}"),
        ("/v1/completions", {"prompt": [10**6]}, None, "token ids in 0.."),
        ("/v1/chat/completions", CHAT, "chat_not_supported", "an encoder-decoder"),
    ):
        reply = server.post(path, body)
        assert reply.status_code == 400, body
        error = reply.json()["error"]
        assert error["code"] == code and says in error["message"]
    assert server.complete("x" * (CONTEXT - 1), max_tokens=CONTEXT - 1).status_code == 200  # the control
    (card,) = server.client.get("/v1/models").json()["data"]
    assert card["chat"] is False and card["max_model_len"] == CONTEXT


def test_config_json_says_whether_a_prompt_is_a_source(tmp_path: Path) -> None:
    own = {"model": {"encoder": {}, "decoder": {}}}
    for raw, expected in (
        ({"is_encoder_decoder": True}, True), ({"is_encoder_decoder": False}, False), ({}, False), (own, True),
        ({"model": {"encoder": None, "decoder": {}}}, False),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(raw))
        assert reads_source(tmp_path) is expected


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("over", [0, 1, 50])
def test_a_long_source_is_cut_inside_its_frame_where_that_is_asked_for(
    server: RunningServer, side: str, over: int
) -> None:
    room = CONTEXT - 1  # the frame's </s>
    text = "".join(chr(97 + n % 19) for n in range(room + over))
    by_hand = text[:room] if side == "right" else text[-room:]
    done = server.complete(text, truncation="auto", truncation_side=side, **SAID)
    expected = server.complete(by_hand, **SAID)
    assert done.json()["choices"] == expected.json()["choices"] and done.json()["usage"] == expected.json()["usage"]
    assert done.headers.get("x-fledge-cut-tokens") == (str(over) if over else None)
    assert server.complete(text, **SAID).status_code == (400 if over else 200)  # the control
    ids = [*range(97, 117)] * 5
    done = server.complete(ids, truncation="auto", truncation_side=side, **SAID)
    expected = server.complete(ids[:CONTEXT] if side == "right" else ids[-CONTEXT:], **SAID)
    assert done.json()["choices"] == expected.json()["choices"]


def test_the_engine_cuts_a_source_too(folder: Path) -> None:
    engine, sampling = load_engine(str(folder)), Sampling(5, seed=3)
    ids = tuple(range(97, 117)) * 5
    long = Request("r", (), sampling, source_ids=ids, long_input=LongInput("truncate"))
    (done,), (expected,) = engine.complete([long]), engine.complete([Request("r", (), sampling, source_ids=ids[-64:])])
    assert (done.token_ids, done.cut_tokens) == (expected.token_ids, 36)
