"""Log-probabilities come out with their text, never before it and never beyond it."""

from __future__ import annotations

import math
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fledge.engine.request import Event, TokenLogprob
from fledge.serve.logprobs import Aligner, TokenTexts
from fledge.text.stream import TextStream
from fledge.text.tokenizer import Tokenizer, byte_level
from fledge.text.train import train_bpe

TEXT = "the naïve café — 世界 世界, the cat and the hat, 👩‍👩‍👧 and the 世界 again; " * 20


@cache
def pairs() -> Tokenizer:
    """Tokens of one and of several bytes, some of them parts of characters."""
    return train_bpe([TEXT], 300)


def run(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...], end: str) -> tuple[str, list[int], bool]:
    """An answer as the engine would tell it: its text, the tokens released, and whether none ever came too early."""
    stream, aligner = TextStream(tokenizer, stop=stop), Aligner(tokenizer, ())
    text, released, in_time = "", [], True
    for place, token in enumerate(ids):
        last = place == len(ids) - 1
        stops = last and end == "stop"
        piece = stream.finish() if stops else stream.push(token)
        if last and not stops and not stream.stopped:
            piece += stream.finish()
        finish = "stop" if stops or stream.stopped else "length" if last else None
        event = Event("r", 0, (token,), piece, (TokenLogprob(token, -1.0),), finish)  # type: ignore[arg-type]
        text += piece
        released += [one.id for one in aligner.push(event)]
        told = b"".join(tokenizer.token_bytes(one) for one in released)
        in_time &= finish is not None or text.encode().startswith(told)
        if finish is not None:
            break
    return text, released, in_time


@given(
    some.text("the 世a—,", min_size=1, max_size=30), some.lists(some.text("the 世", min_size=1, max_size=4), max_size=2)
)
def test_tokens_come_out_exactly_as_far_as_their_text_does(text: str, stop: list[str]) -> None:
    tokenizer = pairs()
    ids = tokenizer.encode(text) + [tokenizer.end_id or 0]
    kept, released, in_time = run(tokenizer, ids, tuple(stop), "stop")
    assert in_time
    lengths = [len(tokenizer.token_bytes(token)) for token in ids[:-1]]
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    assert released == [token for token, end in zip(ids, ends, strict=False) if end <= len(kept.encode())]


@given(some.binary(min_size=1, max_size=20))
def test_an_answer_cut_at_its_limit_tells_every_token(data: bytes) -> None:
    """Half characters and bytes that are no UTF-8 included: each token has a figure."""
    assert run(byte_level(), list(data), (), "length")[1] == list(data)


def test_the_stop_token_is_not_told_but_a_special_token_in_the_middle_is() -> None:
    tokenizer = byte_level()
    end = tokenizer.end_id or 0
    assert run(tokenizer, [65, end, 66, end], (), "stop")[1] == [65, end, 66]
    for stop in (66, 0xE4):  # an ordinary token of stop_token_ids, whole and half a character
        assert run(tokenizer, [65, stop], (), "stop")[1] == [65]


def test_tokens_are_written_as_text_or_as_bytes() -> None:
    texts = TokenTexts(byte_level())
    assert texts.entry(65, -0.5) == {"token": "A", "logprob": -0.5, "bytes": [65]}
    assert texts.entry(0xE4, -math.inf) == {"token": "bytes:\\xe4", "logprob": -9999.0, "bytes": [0xE4]}
    assert texts.entry(texts.tokenizer.end_id or 0, -1.0) == {"token": "<|end|>", "logprob": -1.0, "bytes": None}


@pytest.mark.parametrize("start", [0, 7])
def test_a_completions_tokens_have_their_places(start: int) -> None:
    tokenizer = byte_level()
    aligner = Aligner(tokenizer, (), start)
    event = Event("r", 0, tuple("é!".encode()), "é!", tuple(TokenLogprob(b, -1.0, ((b, -1.0),)) for b in "é!".encode()))
    found = TokenTexts(tokenizer).completion(aligner.push(event))
    assert found["text_offset"] == [start, start, start + 1]
    assert found["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert found["top_logprobs"][2] == {"!": -1.0}
