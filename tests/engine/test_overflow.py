"""Prompts that are too long: what is cut, beside the same request with the prompt cut by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.overflow import LongInput, cut
from fledge.engine.request import Request, Sampling
from fledge.engine.source import cut_source
from fledge.engine.stub import StubRunner
from fledge.errors import ConfigError, RequestError
from fledge.text.chat import ChatRenderer, Message
from fledge.text.sides import framed
from fledge.text.turns import render_fitted
from tests.data.corrupted import wordpiece
from tests.engine.clients import read, with_client
from tests.engine.stub_engine import TOKENIZER, joined, said, stub_engine

CONTEXT, ANSWER = 40, 10
BOS = TOKENIZER.bos_id


def asked(ids, name="r", long_input=None, **settings):
    return Request(name, tuple(ids), Sampling(ANSWER, seed=3, ignore_eos=True, **settings), long_input=long_input)


def text_ids(n, seed=0):
    """BOS and random bytes, `n` tokens together."""
    return [BOS, *random.Random(seed).choices(range(250), k=n - 1)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("frame", ["T5", "BART"])
def test_a_source_is_cut_inside_its_frame(side, frame):
    tokenizer = TOKENIZER if frame == "T5" else wordpiece()
    text = tuple(range(30, 50))
    whole = framed(tokenizer, text)
    n_frame = len(whole) - len(text)
    found = cut_source(tokenizer, whole, LongInput("truncate", side), 12)
    kept = text[n_frame - 12 :] if side == "left" else text[: 12 - n_frame]
    assert n_frame and found == framed(tokenizer, kept) and len(found) == 12
    assert cut_source(tokenizer, whole, LongInput("truncate", side, most=9), 12) == framed(
        tokenizer, text[n_frame - 9 :] if side == "left" else text[: 9 - n_frame]
    )
    assert cut_source(tokenizer, whole[:5], LongInput("truncate", side), 12) == whole[:5]
    bare = cut_source(tokenizer, text, LongInput("truncate", side), 12)  # ids in no frame are cut as they are
    assert bare == (text[-12:] if side == "left" else text[:12])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("over", [-1, 0, 1, 25, 500])
def test_a_truncated_request_says_what_the_cut_prompt_says(side, over):
    room = CONTEXT - ANSWER
    ids = text_ids(room + over)
    by_hand = ids if over <= 0 else ids[:room] if side == "right" else [BOS, *ids[-room + 1 :]]
    (done,) = stub_engine(context_tokens=CONTEXT).complete([asked(ids, long_input=LongInput("truncate", side))])
    (expected,) = stub_engine(context_tokens=CONTEXT).complete([asked(by_hand)])
    assert said(done) == said(expected) and len(done.token_ids) == ANSWER
    assert (done.cut_tokens, expected.cut_tokens) == (max(0, over), 0)
    if over > 0:  # the controls: it is refused otherwise, and another cut says something else
        with pytest.raises(RequestError, match="at most 40 tokens"):
            stub_engine(context_tokens=CONTEXT).submit(asked(ids))
        (other,) = stub_engine(context_tokens=CONTEXT).complete([asked(by_hand[1:])])
        assert said(other) != said(done)


def test_ids_without_bos_are_cut_plainly_and_a_bos_inside_is_a_token_like_others():
    assert cut([1, 2, 3, 4], 2, "left", 9) == (3, 4)
    assert cut([1, 9, 3, 4], 2, "left", 9) == (3, 4)
    assert cut([9, 2, 3, 4], 2, "left", 9) == (9, 4)
    assert cut([9, 2, 3, 4], 1, "left", 9) == (4,)
    assert cut([9, 2], 2, "left", 9) == (9, 2)
    assert cut([9, 2, 3, 4], 3, "right", 9) == (9, 2, 3)


def test_a_number_of_tokens_cuts_what_the_context_would_hold_and_an_answer_too_long_is_refused():
    engine = stub_engine(context_tokens=CONTEXT)
    (done,) = engine.complete([asked(text_ids(25), long_input=LongInput(most=8))])
    assert done.cut_tokens == 17
    with pytest.raises(RequestError, match="at most 40"):  # cut to 35, and the answer does not fit
        engine.submit(asked(text_ids(60), long_input=LongInput(most=35)))
    (done,) = engine.complete([asked(text_ids(60), long_input=LongInput("truncate", most=35))])
    assert done.cut_tokens == 60 - (CONTEXT - ANSWER)
    whole = Request("r", (1, 2), Sampling(CONTEXT), long_input=LongInput("truncate"))
    with pytest.raises(RequestError, match=r"2 in the prompt, 40 for the answer"):
        engine.submit(whole)


def test_an_answer_of_open_length_is_left_a_quarter_of_the_context_where_the_prompt_is_cut():
    policy = LongInput("truncate")
    assert policy.room(None, 40) == (39, 30) and policy.room(None, 40, open_tokens=16) == (39, 24)
    assert policy.room(10, 40) == (30, 30) and policy.room(None, 1) == (0, 1)
    assert len(policy.cut(text_ids(39), None, 40)) == 39 and len(policy.cut(text_ids(40), None, 40)) == 30


def test_the_engines_word_holds_where_a_request_says_nothing():
    ids = text_ids(100)
    config = EngineConfig(overflow="truncate", truncation_side="right")
    engine = Engine(StubRunner(TOKENIZER.vocab_size, context_tokens=CONTEXT), TOKENIZER, config)
    (done,) = engine.complete([asked(ids)])
    (expected,) = engine.complete([asked(ids[: CONTEXT - ANSWER])])
    assert said(done) == said(expected) and done.cut_tokens == 70
    with pytest.raises(RequestError, match="at most 40"):
        engine.submit(asked(ids, long_input=LongInput()))


def test_what_cant_be_done_is_refused_by_name():
    with pytest.raises(RequestError, match="overflow: window needs an engine that reaches past"):
        stub_engine().submit(asked([1], long_input=LongInput("window")))
    with pytest.raises(ConfigError, match="truncation_side: expected one of left, right, got 'middle'"):
        EngineConfig(truncation_side="middle")  # type: ignore[arg-type]


def test_the_engine_process_cuts_too():
    ids = text_ids(100)

    async def body(client):
        cut_there = await read(client, asked(ids, "a", LongInput("truncate")))
        by_hand = await read(client, asked([BOS, *ids[-(CONTEXT - ANSWER) + 1 :]], "b"))
        assert joined(cut_there, "a") == joined(by_hand, "b")
        with pytest.raises(RequestError, match="at most 40"):
            client.submit(asked(ids, "c"))

    with_client(f"stub:context_tokens={CONTEXT}", body)


def conversation(n_turns, seed, system=True):
    chance = random.Random(seed)

    def text():
        return "x" * chance.randrange(1, 30)

    turns = [message for _ in range(n_turns) for message in (Message("user", text()), Message("assistant", text()))]
    return (*([Message("system", "Be short.")] if system else []), *turns, Message("user", text()))


@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("n_turns", [0, 1, 7, 20])
def test_a_chat_loses_its_oldest_turns_whole_and_as_few_as_are_needed(n_turns, system):
    renderer = ChatRenderer(TOKENIZER)
    messages = conversation(n_turns, n_turns, system)
    head = messages[:1] if system else ()
    rest = messages[len(head) :]
    left = [renderer.render((*head, *rest[2 * n :]), generation_prompt=True).ids for n in range(n_turns + 1)]
    assert all(len(longer) > len(shorter) for longer, shorter in pairwise(left))
    for room in sorted({len(ids) + over for ids in left for over in (-1, 0, 1)}, reverse=True):
        expected = next((ids for ids in left if len(ids) <= room), None)
        if expected is None:
            with pytest.raises(RequestError, match=f"a last turn of at most {room} tokens, got {len(left[-1])}"):
                render_fitted(renderer, messages, room, room)
        else:
            assert render_fitted(renderer, messages, room, room) == (expected, len(left[0]) - len(expected))


def test_a_greeting_before_the_first_question_goes_with_the_oldest_turn():
    renderer = ChatRenderer(TOKENIZER)
    hello, ask = Message("assistant", "Hello!" * 5), Message("user", "Why?")
    ids, n_cut = render_fitted(renderer, (hello, ask), 20, 20)
    assert ids == renderer.render((ask,), generation_prompt=True).ids and n_cut > 30


def test_the_chat_in_the_terminal_leaves_turns_out_when_told(monkeypatch, capsys):
    from fledge.cli.chat import Talk

    engine = stub_engine(context_tokens=60)
    one = Talk(engine, ChatRenderer(TOKENIZER), Sampling(1, seed=3), None, 5, LongInput("truncate"))
    for text in ("x" * 30, "y" * 30):
        one.take(text)
    assert "the oldest turns" in capsys.readouterr().err and one.n_turns == 2
    plain = Talk(engine, ChatRenderer(TOKENIZER), Sampling(1, seed=3), None, 5)  # the control
    plain.take("x" * 30)
    with pytest.raises(RequestError, match="was not taken"):
        plain.take("y" * 30)


def test_generate_tells_what_it_cut(capfd):
    from fledge.cli.generate import generate
    from fledge.engine.config import GenerateConfig

    config = GenerateConfig("stub:context_tokens=40", "z" * 50 + "abc", max_tokens=10, overflow="truncate")
    result = generate(config, json=True)
    by_hand = generate(replace(config, prompt=("z" * 50 + "abc")[-29:]), json=True)
    assert result["cut_tokens"] == 24 and "cut_tokens" not in by_hand
    assert result["choices"] == by_hand["choices"] and "24 of its tokens" in capfd.readouterr().err


def test_a_loaded_model_cuts_prompts_and_leaves_turns_out(tmp_path):
    import torch

    from fledge.engine.loaded import load
    from fledge.model.config import ShapeConfig
    from fledge.model.families import family
    from fledge.model.folder import save_model
    from fledge.model.init import initialise
    from fledge.model.transformer import build

    shape = ShapeConfig("llama", width=32, layers=1, heads=2, context_tokens=64, vocab_size=TOKENIZER.vocab_size)
    model = initialise(build(family("llama").build(shape), "cpu"), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    save_model(model, tmp_path, TOKENIZER)
    mine, policy, text = load(tmp_path), LongInput("truncate"), "".join(chr(65 + n % 26) for n in range(200))
    said_there = mine.generate(text, max_tokens=14, seed=3, long_input=policy)
    assert said_there == mine.generate(text[-49:], max_tokens=14, seed=3) != mine.generate(text[:49], max_tokens=14)
    assert mine.complete(mine.prompt_ids(text), long_input=policy)[0].cut_tokens == 201 - 48
    with pytest.raises(RequestError, match="at most 64 tokens"):
        mine.generate(text, max_tokens=14)
    turns = [Message("user", "a" * 30), Message("assistant", "b" * 30), Message("user", "Why?")]
    answered = mine.chat(turns, max_tokens=9, seed=3, long_input=policy)
    assert answered == mine.chat(turns[2:], max_tokens=9, seed=3)
    with pytest.raises(RequestError, match="at most 64 tokens"):
        mine.chat(turns, max_tokens=9)
