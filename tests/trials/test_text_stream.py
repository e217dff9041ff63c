"""Trials 49 and 50 on the stream of text itself: characters over tokens, stop strings over tokens."""

from __future__ import annotations

import itertools

import pytest

from fledge.text.stream import TextStream
from fledge.text.tokenizer import Tokenizer, byte_level
from tests.text.samples import FOREIGN, small_bpe


def run(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream, pieces = TextStream(tokenizer, stop=stop), []
    for number in ids:
        pieces.append(stream.push(number))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream.stopped


@pytest.mark.parametrize("text", ["🎉", "中文字符", "e🎉é", "👩‍👩‍👧‍👦", FOREIGN])
def test_forced_ids_that_split_characters_stream_the_same_text(text):
    """Trial 49: one id a byte, the worst split there is."""
    pieces, _ = run(byte_level(), list(text.encode()))
    assert "".join(pieces) == byte_level().decode(list(text.encode())) == text
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("length", range(1, 5))
def test_an_answer_cut_in_the_middle_of_a_character_ends_before_it(length):
    """Trial 49: max_tokens falls inside 🎉; the stream and the body agree and show no replacement character."""
    ids = list(("a" + "🎉").encode())[: 1 + length]
    pieces, _ = run(byte_level(), ids)
    assert "".join(pieces) == byte_level().decode(ids) == ("a🎉" if length == 4 else "a")


def test_truly_invalid_bytes_do_not_stall_the_stream():
    """Trial 49: each is out at most three bytes later, and so is what follows."""
    for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf0\x9f\x8e", b"\x80\x80"):
        pieces, _ = run(byte_level(), list(b"a" + bad + b"b"))
        assert pieces[-2].endswith("b") and "\ufffd" in "".join(pieces)


@pytest.mark.parametrize("n_tokens", [2, 3, 4])
def test_a_stop_string_over_several_tokens_never_leaks(n_tokens):
    """Trial 50: every way to cut `END.` and its surroundings into tokens gives `before `, and a stop."""
    tokenizer = small_bpe()
    stop, seen = "END.", 0
    for cuts in itertools.combinations(range(1, len(stop)), n_tokens - 1):
        edges = [0, *cuts, len(stop)]
        parts = ["before ", *(stop[a:b] for a, b in zip(edges, edges[1:], strict=False)), " after"]
        ids = [i for part in parts for i in tokenizer.encode(part)]
        pieces, stopped = run(tokenizer, ids, (stop,))
        assert "".join(pieces) == "before " and stopped
        seen += 1
    assert seen


def test_without_holding_back_the_stop_would_leak():
    ids = list(b"before END. after")
    assert "EN" in "".join(byte_level().decode([i]) for i in ids[:9])
    held, _ = run(byte_level(), ids[:9], ("END.",))
    assert "".join(held[:-1]) == "before "


def test_a_stop_inside_one_token_and_across_an_emoji_is_found():
    pieces, stopped = run(byte_level(), list("ok🎉stop".encode()), ("🎉s",))
    assert "".join(pieces) == "ok" and stopped
