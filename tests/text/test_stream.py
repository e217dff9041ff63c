"""TextStream: the pieces joined are the decoded answer, cut before the first stop string."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.text.llama2c import from_llama2c
from fledge.text.stream import TextStream
from fledge.text.tokenizer import Tokenizer, byte_bpe, byte_level, characters
from tests.text.samples import FOREIGN, small_bpe


@functools.cache
def torn() -> Tokenizer:
    """Byte-level tokens that end in the middle of emoji and Chinese characters, in every way."""
    from fledge.text.byte_alphabet import CHARACTER_OF

    vocab = {CHARACTER_OF[byte]: byte for byte in range(256)}
    merges = []
    for text in ("🎉🎊", "中文", "é", "👩‍👧"):
        raw = text.encode()
        for start in range(len(raw) - 1):
            pair = [CHARACTER_OF[raw[start]], CHARACTER_OF[raw[start + 1]]]
            if "".join(pair) not in vocab:
                vocab["".join(pair)] = len(vocab)
                merges.append(pair)
    return byte_bpe(vocab, merges, "gpt2")


def streamed(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), prompt: tuple[int, ...] = ()
) -> list[str]:
    stream = TextStream(tokenizer, prompt, stop)
    pieces = []
    for number in ids:
        pieces.append(stream.push(number))
        if stream.stopped:
            break
    return [*pieces, stream.finish()]


def cut(text: str, stops: tuple[str, ...]) -> str:
    """Before the stop string that is complete first; the longest of those that end together."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(st.lists(st.integers(0, torn().vocab_size - 1), max_size=30))
def test_any_ids_stream_to_their_decoded_text(ids):
    assert "".join(streamed(torn(), ids)) == torn().decode(ids)


@given(st.text("🎉🎊中文é👩a \u200d👧", max_size=12), st.data())
def test_every_split_of_emoji_and_chinese_over_tokens_gives_whole_characters(text, data):
    tokenizer = torn()
    ids, at, raw = [], 0, text.encode()
    by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i)}
    while at < len(raw):
        lengths = [n for n in (1, 2) if raw[at : at + n] in by_bytes and at + n <= len(raw)]
        length = data.draw(st.sampled_from(lengths))
        ids.append(by_bytes[raw[at : at + length]])
        at += length
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)


def test_decoding_each_token_alone_would_show_replacement_characters():
    tokenizer = byte_level()
    alone = "".join(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in tokenizer.encode("🎉"))
    assert "\ufffd" in alone


@given(st.binary(max_size=40))
def test_text_is_never_more_than_three_bytes_late(raw):
    stream, out = TextStream(byte_level()), ""
    for count, byte in enumerate(raw, 1):
        out += stream.push(byte)
        assert out in {raw[: max(0, count - late)].decode("utf-8", "replace") for late in range(4)}
    assert out == byte_level().decode(list(raw))


def test_invalid_bytes_do_not_stall():
    stream = TextStream(byte_level())
    assert [stream.push(byte) for byte in b"a\xff\xffb"] == ["a", "\ufffd", "\ufffd", "b"]
    stream = TextStream(byte_level())
    assert [stream.push(byte) for byte in b"\xf0\x9f\x8eZ"] == ["", "", "", "\ufffdZ"]


@given(
    st.text("ab🎉\n", max_size=30),
    st.lists(st.text("ab🎉\n", min_size=1, max_size=5), min_size=1, max_size=4),
)
def test_the_text_ends_before_the_first_stop_string_and_nothing_of_it_leaks(text, stops):
    stops = tuple(stops)
    pieces = streamed(byte_level(), list(text.encode()), stops)
    assert "".join(pieces) == cut(text, stops)


@given(st.text("xyz ", max_size=20), st.text("xyz ", min_size=2, max_size=6), st.integers(0, 10**9))
def test_however_tokens_cut_the_text_the_stop_is_found(text, stop, seed):
    """The same text in other tokens: the answer is the same."""
    import random

    tokenizer = small_bpe()
    whole = text + stop + " and on"
    rng, at, ids = random.Random(seed), 0, []
    while at < len(whole):
        size = rng.randint(1, 4)
        ids += tokenizer.encode(whole[at : at + size])
        at += size
    assert "".join(streamed(tokenizer, ids, (stop,))) == cut(whole, (stop,))


def test_text_before_a_stop_is_given_out_as_soon_as_it_is_certain():
    assert streamed(byte_level(), list(b"a#b##"), ("##",)) == ["a", "", "#b", "", "", ""]


def test_a_stop_that_never_completes_comes_out_at_the_end():
    stream = TextStream(byte_level(), stop=("END",))
    assert [stream.push(byte) for byte in b"xEN"] == ["x", "", ""]
    assert stream.finish() == "EN" and not stream.stopped


def test_nothing_follows_a_stop():
    stream = TextStream(byte_level(), stop=("b",))
    assert [stream.push(byte) for byte in b"abc"] == ["a", "", ""]
    assert stream.stopped and stream.finish() == "" and stream.push(97) == ""


def test_half_a_stop_held_back_does_not_hide_a_shorter_one():
    assert "".join(streamed(byte_level(), list(b"zabcq"), ("abcd", "bc"))) == "za"


def test_special_tokens_have_no_text():
    tokenizer = small_bpe()
    ids = [*tokenizer.encode("a"), tokenizer.eos_id, *tokenizer.encode("b")]
    assert "".join(streamed(tokenizer, ids)) == "ab"


def test_characters_stream():
    tokenizer = characters("né🎉")
    assert streamed(tokenizer, tokenizer.encode("né🎉"), ("🎉",)) == ["n", "é", "", ""]


def test_an_answer_keeps_its_first_space_after_a_prompt_and_drops_it_after_bos_alone(data_file):
    tokenizer = from_llama2c(data_file("ckpt_stories260K/tok512.bin"))
    prompt, answer = [1, *tokenizer.encode("Once")], tokenizer.encode("upon a time")
    whole = tokenizer.decode(prompt + answer)
    assert whole == "Once upon a time"
    assert "".join(streamed(tokenizer, answer, (), tuple(prompt))) == whole.removeprefix(tokenizer.decode(prompt))
    assert "".join(streamed(tokenizer, answer, (), (1,))) == tokenizer.decode([1, *answer]) == "upon a time"


@pytest.mark.parametrize("script", [FOREIGN])
def test_real_text_streams_whole(script):
    tokenizer = small_bpe()
    assert "".join(streamed(tokenizer, tokenizer.encode(script))) == script


def test_a_long_periodic_stop_string_costs_linear_time():
    import time

    stream = TextStream(byte_level(), stop=("a" * 50_000 + "b",))
    began = time.process_time()
    for _ in range(40_000):
        stream.push(97)
    assert time.process_time() - began < 2
    assert stream.finish() == "a" * 40_000
