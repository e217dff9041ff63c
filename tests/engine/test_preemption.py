"""When blocks run out: who gives way, that nobody's tokens change, nobody waits for ever and no block is lost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.engine.blocks import BlockPool
from fledge.errors import RequestError
from tests.engine.stub_engine import TOKENIZER, Recording, drain, joined, request, said, stub_engine

PENALISED = dict(repetition_penalty=1.3, presence_penalty=0.4, min_tokens=5, stop=("zq",))


def several(n: int, **changes) -> list:
    return [
        request(f"r{i}", "x" * (20 + i), max_tokens=60, ignore_eos=True, seed=i, **{**PENALISED, **changes})
        for i in range(n)
    ]


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("n_blocks", [6, 8, 11])
def test_an_answer_that_gave_its_blocks_back_goes_on_with_the_same_tokens(n_blocks, prefix_cache):
    requests = several(4, logprobs=1)
    engine = stub_engine(n_blocks=n_blocks, prefix_cache=prefix_cache)
    got = engine.complete(requests)
    assert engine.counters()["preemptions_total"] > 0 and engine.counters()["blocks_used"] == 0
    for one, alone in zip(got, requests, strict=True):
        (expected,) = stub_engine(prefix_cache=False).complete([alone])
        assert (said(one), one.logprobs) == (said(expected), expected.logprobs)


def test_the_youngest_of_the_least_important_gives_way():
    runner = Recording(TOKENIZER.vocab_size, 4, n_blocks=9)
    engine = stub_engine(runner=runner)
    for i, priority in enumerate((1, 0, 0)):
        engine.submit(request(f"r{i}", "x" * 40, max_tokens=60, ignore_eos=True, priority=priority))
    ended = [event.request_id for event in drain(engine) if event.finish_reason]
    assert engine.counters()["preemptions_total"] >= 1 and ended == ["r0", "r1", "r2"]
    with_room = [{row.sequence for row in call} for call in runner.calls]
    assert {0, 1} in with_room  # r0 and r1 went on while r2 had given its blocks back


def test_prompt_log_probabilities_survive_preemption():
    asked = [request(f"r{i}", "y" * (50 + i), max_tokens=40, ignore_eos=True, prompt_logprobs=True) for i in range(3)]
    engine = stub_engine(n_blocks=9, prefill_chunk=16)
    got = engine.complete(asked)
    assert engine.counters()["preemptions_total"] > 0
    for one, alone in zip(got, asked, strict=True):
        (expected,) = stub_engine().complete([alone])
        assert (said(one), one.prompt_logprobs) == (said(expected), expected.prompt_logprobs)


def test_a_prompt_half_measured_is_measured_whole():
    engine = stub_engine(n_slots=1, prefill_chunk=16)
    low = request("low", "y" * 50, prompt_logprobs=True, logprobs=2)
    engine.submit(low)
    events = engine.step() + engine.step()
    engine.submit(request("high", priority=1))
    events += drain(engine)
    (told,) = [event.prompt_logprobs for event in events if event.prompt_logprobs]
    assert engine.counters()["preemptions_total"] == 1 and len(told) == 51
    assert told == stub_engine().complete([low])[0].prompt_logprobs


def test_an_answer_that_would_not_fit_alone_is_refused_at_once():
    engine = stub_engine(n_blocks=4, context_tokens=512)
    assert engine.context_tokens == 64
    with pytest.raises(RequestError, match="at most 64 tokens, got 65") as caught:
        engine.submit(request("r", "x" * 40, max_tokens=24))
    assert caught.value.code == "context_length_exceeded"
    (fits,) = engine.complete([request("r", "x" * 40, max_tokens=23, ignore_eos=True)])
    assert len(fits.token_ids) == 23


def test_a_more_important_answer_takes_the_place_of_a_less_important_one():
    engine = stub_engine(n_slots=1)
    low = request("low", max_tokens=40, ignore_eos=True, seed=2)
    engine.submit(low)
    events = [event for _ in range(5) for event in engine.step()]
    engine.submit(request("same", priority=0))
    engine.submit(request("high", max_tokens=3, ignore_eos=True, priority=1))
    events += drain(engine)
    ended = [event.request_id for event in events if event.finish_reason]
    assert ended == ["high", "low", "same"] and engine.counters()["preemptions_total"] == 1
    assert joined(events, "low") == said(stub_engine().complete([low])[0])


def test_a_table_of_wrong_blocks_would_be_noticed(monkeypatch):
    """The control: two documents that write to one block."""
    right = BlockPool.take

    def wrong(self, after, wanted):
        block = right(self, after, wanted)
        return block if after is None else after  # the table off by one

    monkeypatch.setattr(BlockPool, "take", wrong)
    expected = [said(one) for one in [stub_engine(n_slots=1, prefix_cache=False).complete([r])[0] for r in several(1)]]
    monkeypatch.undo()
    assert expected != [said(stub_engine().complete(several(1))[0])]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(3, 9),
    st.sampled_from([5, 16, 512]),
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 3), st.integers(1, 17), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.data(),
)
def test_any_mix_in_a_tiny_pool_ends_with_every_block_free_and_everybody_answered(n_blocks, chunk, plans, data):
    engine = stub_engine(n_slots=3, prefill_chunk=chunk, n_blocks=n_blocks)
    cancelled, events, requests = set(), [], []
    for i, (length, n, max_tokens, priority, alike) in enumerate(plans):
        prompt = "a" * length if alike else chr(97 + i) * length
        tenant = str(i % 2)
        one = request(f"r{i}", prompt, tenant, n=n, max_tokens=max_tokens, priority=priority, ignore_eos=True, seed=i)
        requests.append(one)
        engine.submit(one)
        for _ in range(data.draw(st.integers(0, 3))):
            events += engine.step()
        if data.draw(st.integers(0, 4)) == 0:
            name = data.draw(st.sampled_from(requests)).id
            cancelled |= {name} & set(engine.live)
            engine.cancel(name)
    n_steps = 0
    while engine.has_work:
        events += engine.step()
        n_steps += 1
        assert n_steps < 2000
    counters = engine.counters()
    assert counters["blocks_used"] == counters["running"] == counters["waiting"] == counters["slots_in_use"] == 0
    assert not engine.scheduler.followers and not any(engine.scheduler.pool.holders)
    for one in requests:
        for index in range(one.sampling.n):
            _, ids, finish = joined(events, one.id, index)
            assert finish == ("cancelled" if one.id in cancelled else "length")
            if one.id not in cancelled:
                assert len(ids) == one.sampling.max_tokens
