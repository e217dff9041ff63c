"""A request's tokens depend on its content, its parameters and its seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from fledge.engine.request import Request
from fledge.engine.stub import StubRunner
from tests.engine.stub_engine import TOKENIZER, drain, joined, request, said, stub_engine

KINDS = {
    "greedy": dict(temperature=0.0),
    "plain": dict(seed=1),
    "truncated": dict(seed=2, top_k=20, top_p=0.9, min_p=0.01, temperature=1.3),
    "penalised": dict(seed=3, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3),
    "logprobs": dict(seed=4, logprobs=3),
}


def measured(kind: str, name: str = "measured") -> Request:
    return request(name, "the request that is measured", max_tokens=25, **KINDS[kind])


def alone(kind: str):
    return said(stub_engine(n_slots=1).complete([measured(kind)])[0])


def crowd(i: int) -> Request:
    return request(f"crowd{i}", "abc" * (i + 1), max_tokens=5 + 3 * i, seed=i, temperature=0.5 * (i % 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_slots, prefill_chunk", [(2, 512), (4, 7), (8, 1)])
def test_company_slot_and_chunks_change_no_token(kind, n_slots, prefill_chunk):
    expected = alone(kind)
    for n_before in (0, 1, 3, 7):
        engine = stub_engine(n_slots=n_slots, prefill_chunk=prefill_chunk)
        events = []
        for i in range(n_before):
            engine.submit(crowd(i))
            events += engine.step()
        engine.submit(measured(kind))
        for i in range(n_before, n_before + 3):
            events += engine.step()
            engine.submit(crowd(i))
        events += drain(engine)
        assert joined(events, "measured") == expected


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_company_changes_no_token(kind):
    engine = stub_engine(n_slots=2)
    engine.submit(crowd(0))
    events = engine.step()
    engine.submit(measured(kind))
    events += engine.step()
    engine.cancel("crowd0")
    engine.submit(crowd(1))
    events += drain(engine)
    assert joined(events, "measured") == alone(kind)


class Leaky(StubRunner):
    """The control: logits that depend on how many rows are computed together."""

    def forward(self, rows):
        return [np.roll(logits, len(rows)) for logits in super().forward(rows)]


class Deaf(StubRunner):
    """The control: the cache forgets which blocks are meant."""

    def row_logits(self, row):
        from dataclasses import replace

        return super().row_logits(replace(row, blocks=tuple(range(len(row.blocks)))))


@pytest.mark.parametrize("runner", [Leaky, Deaf])
def test_a_runner_that_mixes_rows_up_would_be_noticed(runner):
    engine = stub_engine(runner=runner(TOKENIZER.vocab_size, 4))
    engine.submit(crowd(1))
    engine.submit(measured("plain"))
    assert joined(drain(engine), "measured") != alone("plain")


def test_every_part_of_a_request_that_should_matter_does():
    base = said(stub_engine().complete([request("r", seed=1)])[0])
    long = said(stub_engine().complete([request("r", seed=1, max_tokens=100)])[0])
    others = [
        request("r", seed=2),
        request("r", "hellp", seed=1),
        request("r", seed=1, temperature=3.0),
        request("r", seed=1, logit_bias=((104, 20.0),)),
        request("r", seed=1, repetition_penalty=100.0, max_tokens=100),
    ]
    for other in others:
        assert said(stub_engine().complete([other])[0]) not in (base, long)
    assert said(stub_engine().complete([request("another id", seed=1, tenant="t")])[0]) == base


def test_choices_differ_from_each_other_and_not_with_n():
    four = stub_engine().complete([request("r", seed=9, n=4)])
    two = stub_engine(n_slots=1).complete([request("r", seed=9, n=2)])
    assert len({one.text for one in four}) == 4
    assert [said(one) for one in two] == [said(one) for one in four[:2]]
    greedy = stub_engine().complete([request("r", temperature=0.0, n=3)])
    assert len({one.text for one in greedy}) == 1


def test_an_answer_can_be_resumed_where_it_was_cut():
    # position counts from the document's start, so prompt + first tokens goes on with the same noise
    whole = stub_engine().complete([request("r", seed=4, max_tokens=20, ignore_eos=True)])[0]
    rest = request("r", seed=4, max_tokens=12, ignore_eos=True)
    resumed = Request("r", rest.prompt_ids + whole.token_ids[:8], rest.sampling)
    assert stub_engine().complete([resumed])[0].token_ids == whole.token_ids[8:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_joined_stream_is_the_completion(kind):
    engine = stub_engine()
    engine.submit(measured(kind))
    assert joined(drain(engine), "measured") == alone(kind)
