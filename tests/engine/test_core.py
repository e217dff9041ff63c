"""The engine's rules: admission, fairness, cancelling, lengths, failures, figures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.engine.request import Request, Sampling
from fledge.engine.stub import StubRunner
from fledge.errors import CapacityError, EngineError, RequestError
from tests.engine.stub_engine import TOKENIZER, Recording, drain, joined, request, said, stub_engine


def test_prompt_and_answer_fill_the_context_exactly_and_one_more_is_refused():
    engine = stub_engine(context_tokens=20)
    for max_tokens in (13, 14):
        (completion,) = engine.complete([request("r", "hello", max_tokens=max_tokens, ignore_eos=True)])
        assert len(completion.token_ids) == max_tokens
    with pytest.raises(
        RequestError, match=r"at most 20 tokens, got 21 \(6 in the prompt, 15 for the answer\)"
    ) as caught:
        engine.submit(request("r", "hello", max_tokens=15))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "max_tokens")


@pytest.mark.parametrize("length", [19, 20, 100])
def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(length):
    with pytest.raises(RequestError, match=f"at most 20 tokens, got {length + 2}") as caught:
        stub_engine(context_tokens=20).submit(request("r", "x" * length, max_tokens=1))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize("ids", [(), (-1,), (TOKENIZER.vocab_size,), (0, 10**12)])
def test_prompts_that_are_no_tokens_are_refused(ids):
    engine = stub_engine()
    with pytest.raises(RequestError, match="prompt: expected"):
        engine.submit(Request("r", ids))
    assert not engine.has_work


def test_a_request_id_that_runs_is_refused_and_free_again_afterwards():
    engine = stub_engine()
    engine.submit(request("r"))
    with pytest.raises(RequestError, match="new request id"):
        engine.submit(request("r"))
    drain(engine)
    engine.submit(request("r"))


def test_the_line_has_an_end_and_a_refused_request_leaves_no_trace():
    engine = stub_engine(n_slots=2, max_waiting=3)
    for i in range(5):
        engine.submit(request(f"r{i}"))
    before = engine.counters()
    with pytest.raises(CapacityError, match="expected room for 1 answers, got 0"):
        engine.submit(request("late"))
    assert engine.counters() == before
    engine.step()
    assert (engine.counters()["running"], engine.counters()["waiting"]) == (2, 3)
    drain(engine)
    with pytest.raises(CapacityError, match="expected room for 6 answers, got 5"):
        engine.submit(request("many", n=6))
    engine.submit(request("fits", n=5))


def test_a_tenant_with_one_request_does_not_wait_behind_anothers_flood():
    engine = stub_engine(n_slots=1)
    for i in range(6):
        engine.submit(request(f"flood{i}", tenant="flood", max_tokens=2))
    engine.submit(request("single", tenant="other", max_tokens=2))
    ended = [event.request_id for event in drain(engine) if event.finish_reason]
    assert ended.index("single") == 1
    assert [name for name in ended if name != "single"] == [f"flood{i}" for i in range(6)]


def test_running_answers_go_on_while_a_long_prompt_is_read():
    engine = stub_engine(prefill_chunk=16, context_tokens=512)
    engine.submit(request("short", max_tokens=30, ignore_eos=True))
    engine.step()
    engine.submit(request("long", "x" * 400, max_tokens=1))
    n_steps = 0
    while "long" in engine.live:
        names = [event.request_id for event in engine.step()]
        assert "short" in names
        n_steps += 1
    assert n_steps == 26  # 401 tokens in chunks of 16


def test_a_short_prompt_does_not_wait_for_a_long_one():
    engine = stub_engine(prefill_chunk=16, context_tokens=512)
    engine.submit(request("long", "x" * 400, max_tokens=1))
    engine.submit(request("short", "x", max_tokens=1))
    ended = [[event.request_id for event in engine.step()] for _ in range(3)]
    assert ["short"] in ended


def test_chunk_edges_depend_on_the_prompt_alone():
    edges = {}
    for company in (0, 1, 3):
        runner = Recording(TOKENIZER.vocab_size, 4, context_tokens=256)
        engine = stub_engine(runner=runner, prefill_chunk=16)
        for i in range(company):
            engine.submit(request(f"c{i}", "y" * (7 * i + 5)))
        engine.submit(request("long", "x" * 50))
        drain(engine)
        rows = [row for call in runner.calls for row in call if TOKENIZER.encode("x")[0] in row.ids]
        edges[company] = [(row.start, len(row.ids)) for row in rows if len(row.ids) > 1]
    assert edges[0] == [(0, 16), (16, 16), (32, 16), (48, 3)] == edges[1] == edges[3]


def test_a_step_reads_whole_prompts_up_to_the_chunk_together():
    runner = Recording(TOKENIZER.vocab_size, 8, context_tokens=256)
    engine = stub_engine(runner=runner, prefill_chunk=20)
    for i in range(4):
        engine.submit(request(f"r{i}", "abcdefgh"))  # 9 tokens each
    engine.step()
    assert [len(call) for call in runner.calls] == [2]


def test_cancelling_frees_every_slot_at_once_and_says_so():
    engine = stub_engine(n_slots=2)
    engine.submit(request("gone", n=3, max_tokens=100))
    engine.submit(request("stays"))
    for _ in range(3):
        engine.step()
    engine.cancel("gone")
    assert engine.counters()["slots_in_use"] == 0  # one choice of it was still waiting
    events = engine.step()
    assert sorted(e.index for e in events if e.finish_reason == "cancelled") == [0, 1, 2]
    drain(engine)
    counters = engine.counters()
    assert (counters["cancelled_total"], counters["waiting"], counters["slots_in_use"]) == (1, 0, 0)
    engine.cancel("gone")
    engine.cancel("unknown")
    assert engine.counters()["cancelled_total"] == 1 and not engine.has_work


def test_the_id_of_a_cancelled_request_is_taken_until_its_last_event_is_told():
    engine = stub_engine()
    engine.submit(request("r", max_tokens=50, ignore_eos=True))
    engine.step()
    engine.cancel("r")
    for again in (lambda: engine.submit(request("r")), lambda: engine.complete([request("r")])):
        with pytest.raises(RequestError, match="id: expected a new request id, got 'r', whose last events"):
            again()
    assert [(event.request_id, event.finish_reason) for event in engine.step()] == [("r", "cancelled")]
    (done,) = engine.complete([request("r")])
    assert said(done) == said(stub_engine().complete([request("r")])[0])
    engine.submit(request("r"))
    engine.step_for(())
    engine.abandon(["r"])  # nobody is told of these
    assert engine.complete([request("r")]) == [done]


def test_nothing_of_a_cancelled_request_comes_after_its_last_event():
    engine = stub_engine()
    engine.submit(request("gone", max_tokens=100))
    engine.step()
    engine.cancel("gone")
    assert [event.finish_reason for event in drain(engine)] == ["cancelled"]


POISON = TOKENIZER.encode("!")[0]


def test_poison_fails_its_own_request_and_nobody_elses(capsys):
    clean = [request(f"r{i}", f"prompt {i}", max_tokens=8) for i in range(3)]
    expected = [said(one) for one in stub_engine().complete(clean)]
    engine = stub_engine(poison=frozenset([POISON]))
    for one in (clean[0], request("poison", "bad!", n=2), clean[1], clean[2]):
        engine.submit(one)
    events = drain(engine)
    assert [joined(events, f"r{i}") for i in range(3)] == expected
    bad = [event for event in events if event.request_id == "poison"]
    assert [(e.index, e.finish_reason) for e in bad] == [(0, "error"), (1, "error")]
    assert "poison in the row" in capsys.readouterr().err
    assert {e.error for e in bad} == {"engine: the forward pass failed (RuntimeError); the request was given up"}
    assert engine.counters()["failed_total"] == 1 and engine.counters()["slots_in_use"] == 0


class TooLarge(StubRunner):
    """No memory for more than one row at a time."""

    def forward(self, rows):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no memory")
        return super().forward(rows)


def test_a_batch_that_is_too_large_is_done_row_by_row():
    requests = [request(f"r{i}", f"prompt {i}") for i in range(4)]
    expected = [said(one) for one in stub_engine().complete(requests)]
    engine = stub_engine(runner=TooLarge(TOKENIZER.vocab_size, 4))
    assert [said(one) for one in engine.complete(requests)] == expected


class NotFinite(StubRunner):
    def forward(self, rows):
        pairs = zip(rows, super().forward(rows), strict=True)
        return [logits * float("nan") if POISON in row.ids else logits for row, logits in pairs]


def test_logits_that_are_not_finite_fail_their_request_alone():
    engine = stub_engine(runner=NotFinite(TOKENIZER.vocab_size, 4))
    engine.submit(request("bad", "bad!"))
    engine.submit(request("good"))
    events = drain(engine)
    assert joined(events, "bad")[2] == "error" and joined(events, "good")[2] == "length"


def test_a_model_vocabulary_beyond_the_tokenizers_is_never_chosen():
    engine = stub_engine(runner=StubRunner(10 * TOKENIZER.vocab_size, 4))
    (completion,) = engine.complete([request("r", max_tokens=100, temperature=5.0, logprobs=5)])
    assert max(completion.token_ids) < TOKENIZER.vocab_size
    assert max(token for one in completion.logprobs for token, _ in one.top) < TOKENIZER.vocab_size
    assert sum(2.718281828**value for _, value in completion.logprobs[0].top) < 0.9  # the rest is outside


def test_the_figures_count_what_happened():
    engine = stub_engine(n_slots=2)
    engine.submit(request("a", "four", max_tokens=3, ignore_eos=True))
    engine.submit(request("b", "four", max_tokens=3, ignore_eos=True, n=2))
    engine.step()
    counters = engine.counters()
    assert (counters["running"], counters["waiting"], counters["slots_in_use"]) == (2, 1, 2)
    assert (counters["blocks_used"], counters["blocks_free"], counters["slots_total"]) == (2, 62, 2)
    drain(engine)
    counters = engine.counters()
    assert (counters["running"], counters["blocks_used"], counters["slots_in_use"]) == (0, 0, 0)
    assert (counters["requests_total"], counters["prompt_tokens_total"]) == (2, 10)
    assert counters["generated_tokens_total"] == 9
    assert counters["steps_total"] == 6


def test_complete_takes_more_requests_than_the_line_holds_and_keeps_their_order():
    engine = stub_engine(n_slots=2, max_waiting=1)
    requests = [request(f"r{i}", f"prompt {i}", n=1 + i % 2) for i in range(9)]
    got = engine.complete(requests)
    assert [(one.request_id, one.index) for one in got] == [(r.id, i) for r in requests for i in range(r.sampling.n)]
    assert [said(one) for one in got] == [said(one) for one in stub_engine().complete(requests)]


def test_complete_raises_for_a_request_that_failed_and_leaves_a_clean_engine():
    engine = stub_engine(poison=frozenset([POISON]))
    with pytest.raises(EngineError, match="RuntimeError"):
        engine.complete([request("good", max_tokens=50), request("bad", "bad!")])
    assert not engine.has_work and engine.counters()["slots_in_use"] == 0
    with pytest.raises(RequestError, match="twice"):
        engine.complete([request("r"), request("r")])
    with pytest.raises(CapacityError):
        stub_engine(n_slots=1, max_waiting=1).complete([request("r", n=3)])


def test_events_of_others_do_not_keep_complete_waiting_for_room_that_never_comes():
    engine = stub_engine(n_slots=1, max_waiting=1)
    engine.submit(request("gone"))
    engine.step()
    engine.cancel("gone")
    with pytest.raises(CapacityError, match="room for 3 answers, got 2"):
        engine.complete([request("r", n=3)])
    assert [event.finish_reason for event in drain(engine)] == ["cancelled"]


def test_complete_keeps_the_events_of_others_for_the_next_step():
    engine = stub_engine()
    engine.submit(request("other"))
    (mine,) = engine.complete([request("mine", max_tokens=30)])
    expected = stub_engine().complete([request("other")])[0]
    assert joined(drain(engine), "other") == said(expected)


def test_complete_keeps_the_events_of_others_when_it_raises_too():
    """Tenants take turns, so the request that fails stands before the second of the others in the same step."""
    engine = stub_engine(poison=frozenset([POISON]))
    others = [request(f"other{i}", max_tokens=1) for i in range(2)]
    for one in others:
        engine.submit(one)
    with pytest.raises(EngineError):
        engine.complete([request("bad", "!", max_tokens=5, tenant="another")])
    expected = [said(one) for one in stub_engine().complete(others)]
    events = drain(engine)
    assert [joined(events, one.id) for one in others] == expected


def test_events_of_an_abandoned_request_are_told_to_nobody():
    engine = stub_engine()
    for name in ("gone", "stays"):
        engine.submit(request(name, max_tokens=3, ignore_eos=True))
    engine.step_for(["stays"])  # an event of "gone" waits
    engine.abandon(["gone", "unknown"])
    assert engine.counters()["slots_in_use"] == 1
    assert {event.request_id for event in drain(engine)} == {"stays"}


def test_prompts_may_be_one_token():
    (completion,) = stub_engine().complete([Request("r", (5,), Sampling(max_tokens=4, ignore_eos=True))])
    assert len(completion.token_ids) == 4


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3), st.integers(1, 6)), min_size=1), st.data())
def test_any_mix_of_arrivals_and_cancellations_ends_with_every_slot_free(plans, data):
    engine = stub_engine(n_slots=3, prefill_chunk=8)
    names = []
    for i, (length, n, max_tokens) in enumerate(plans):
        names.append(f"r{i}")
        engine.submit(request(f"r{i}", "x" * length, n=n, max_tokens=max_tokens, tenant=str(i % 3)))
        for _ in range(data.draw(st.integers(0, 3))):
            engine.step()
        if data.draw(st.booleans()):
            engine.cancel(data.draw(st.sampled_from(names)))
        assert engine.counters()["slots_in_use"] == engine.counters()["running"] <= 3
    drain(engine)
    assert sorted(engine.scheduler.free_slots) == [0, 1, 2] and not engine.live and not len(engine.scheduler.waiting)
    assert engine.counters()["blocks_used"] == 0
