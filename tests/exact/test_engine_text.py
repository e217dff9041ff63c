"""From chosen tokens to text: UTF-8 and stop strings over tokens, stop tokens, log-probabilities by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fledge.engine.stub import StubRunner
from tests.engine.stub_engine import TOKENIZER, drain, joined, request, stub_engine

EOS, END = TOKENIZER.eos_id, TOKENIZER.end_id


def answered(ids: list[int], **settings):
    """(pieces of text, token ids, finish reason) when the model says exactly `ids`."""
    engine = stub_engine(script=ids)
    engine.submit(request("r", "?", **{"max_tokens": len(ids), **settings}))
    events = drain(engine)
    return [event.text for event in events], *joined(events, "r")[1:]


@pytest.mark.parametrize("text", ["héllo", "日本語 and 한국어", "👩‍👩‍👧 and 🏳️‍🌈", "ends with é", "Ünïcödé 😀"])
def test_no_piece_of_the_stream_holds_half_a_character(text):
    pieces, ids, finish = answered([*TOKENIZER.encode(text), EOS])
    assert "".join(pieces) == text and finish == "stop"
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(ids) == len(text.encode()) + 1


def test_an_answer_cut_in_mid_character_gives_the_whole_ones():
    ids = TOKENIZER.encode("ab😀")
    pieces, token_ids, finish = answered([*ids, EOS], max_tokens=4)
    assert ("".join(pieces), finish, len(token_ids)) == ("ab", "length", 4)
    assert TOKENIZER.decode(token_ids) == "ab"


def test_invalid_bytes_are_replaced_and_do_not_stall():
    ids = [*TOKENIZER.encode("a"), 0xFF, 0xE2, 0x82, *TOKENIZER.encode("b"), EOS]
    pieces, token_ids, _ = answered(ids)
    assert "".join(pieces) == "a\ufffd\ufffdb" == TOKENIZER.decode(token_ids)


@pytest.mark.parametrize("stop", ["END", " END", "ND", "é E"])
def test_a_stop_string_over_tokens_is_in_no_piece(stop):
    text = "some é END of it"
    pieces, ids, finish = answered([*TOKENIZER.encode(text), EOS], stop=(stop,))
    assert "".join(pieces) == text[: text.index(stop)] and finish == "stop"
    assert len(ids) == len(text[: text.index(stop) + len(stop)].encode())  # usage: up to the stop, not after
    assert not stop.startswith("E") or not any(piece.endswith(("E", "EN")) for piece in pieces)


def test_what_looked_like_a_stop_string_and_was_none_is_given_out():
    text = "an EN and an E"
    pieces, _, finish = answered([*TOKENIZER.encode(text), EOS], stop=("END",))
    assert ("".join(pieces), finish) == (text, "stop")
    pieces, _, finish = answered([*TOKENIZER.encode(text), EOS], stop=("END",), max_tokens=5)
    assert ("".join(pieces), finish) == ("an EN", "length")


def test_of_several_stop_strings_the_first_complete_one_ends():
    pieces, _, _ = answered([*TOKENIZER.encode("one two three"), EOS], stop=("three", "two", "absent"))
    assert "".join(pieces) == "one "


@pytest.mark.parametrize("stop_id", [EOS, END])
def test_the_stop_token_is_counted_and_not_shown(stop_id):
    pieces, ids, finish = answered([*TOKENIZER.encode("hi"), stop_id, *TOKENIZER.encode("never")])
    assert ("".join(pieces), ids[-1], len(ids), finish) == ("hi", stop_id, 3, "stop")


def test_a_stop_token_of_the_request_or_of_the_engine_ends_too():
    ids = TOKENIZER.encode("hi there")
    pieces, token_ids, finish = answered(ids, stop_token_ids=(ids[3],))
    assert ("".join(pieces), token_ids[-1], finish) == ("hi ", ids[3], "stop")
    engine = stub_engine(script=ids, stop_ids=[ids[2]])
    assert engine.complete([request("r")])[0].text == "hi"


def test_ignore_eos_goes_on_past_the_models_stops_and_not_past_the_requests():
    ids = [*TOKENIZER.encode("hi"), EOS, *TOKENIZER.encode("ho"), 7, *TOKENIZER.encode("never")]
    pieces, token_ids, finish = answered(ids, ignore_eos=True, stop_token_ids=(7,))
    assert ("".join(pieces), finish) == ("hiho", "stop") and token_ids == tuple(ids[:6])


def test_min_tokens_holds_the_stop_token_back():
    engine = stub_engine(script=[EOS])
    (completion,) = engine.complete([request("r", min_tokens=5, max_tokens=20)])
    assert completion.token_ids[-1] == EOS and len(completion.token_ids) == 6
    assert not {EOS, END} & set(completion.token_ids[:-1])


def test_log_probabilities_are_the_models_before_every_setting():
    settings = dict(logprobs=4, temperature=2.5, top_k=3, repetition_penalty=1.7, logit_bias=((9, 5.0),), seed=6)
    (completion,) = stub_engine().complete([request("r", max_tokens=6, prompt_logprobs=True, **settings)])
    model = StubRunner(TOKENIZER.vocab_size)
    prompt = list(request("r").prompt_ids)
    context = prompt + list(completion.token_ids)
    expected = [by_hand(model, context[:i], context[i]) for i in range(1, len(context))]
    got = [*completion.prompt_logprobs[1:], *completion.logprobs]
    assert completion.prompt_logprobs[0] is None and len(completion.prompt_logprobs) == len(prompt)
    for one, (token, logprob, top) in zip(got, expected, strict=True):
        assert one.token_id == token and one.logprob == pytest.approx(logprob, abs=1e-6)
        assert [i for i, _ in one.top] == [i for i, _ in top]
        assert [value for _, value in one.top] == pytest.approx([value for _, value in top], abs=1e-6)


def by_hand(model: StubRunner, context: list[int], token: int):
    logits = [float(x) for x in model.logits_after(context)]
    normaliser = math.log(math.fsum(math.exp(x) for x in logits))
    order = sorted(range(len(logits)), key=lambda i: -logits[i])[:4]
    return token, logits[token] - normaliser, [(i, logits[i] - normaliser) for i in order]


@pytest.mark.parametrize("prefill_chunk", [1, 4, 512])
def test_prompt_log_probabilities_do_not_depend_on_chunks(prefill_chunk):
    wanted = request("r", "a longer prompt", max_tokens=1, logprobs=2, prompt_logprobs=True)
    one = stub_engine().complete([wanted])[0].prompt_logprobs
    two = stub_engine(prefill_chunk=prefill_chunk).complete([wanted])[0].prompt_logprobs
    assert one == two and len(one) == 16


def test_no_log_probabilities_unless_asked():
    (completion,) = stub_engine().complete([request("r")])
    assert completion.logprobs == () and completion.prompt_logprobs is None
    (completion,) = stub_engine().complete([request("r", logprobs=0)])
    assert len(completion.logprobs) == 12 and completion.logprobs[0].top == ()


def test_the_stub_answers_as_a_function_of_its_context_alone():
    # the oracle of the tests above must itself be sound
    model = StubRunner(TOKENIZER.vocab_size)
    assert (model.logits_after([1, 2, 3]) == model.logits_after([1, 2, 3])).all()
    assert np.abs(model.logits_after([1, 2, 3]) - model.logits_after([1, 3, 2])).max() > 1
