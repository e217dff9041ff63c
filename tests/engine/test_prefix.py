"""Prompts that begin alike share blocks: inside a tenant, for the same weights, and without changing a token."""

from __future__ import annotations

import pytest

from fledge.engine import prefix, scheduler
from fledge.engine.prefix import PrefixIndex
from fledge.engine.stub import StubRunner
from tests.engine.stub_engine import TOKENIZER, Recording, drain, joined, request, said, stub_engine

LONG = "a prompt that fills four blocks of sixteen tokens, and some more"  # 65 tokens with BOS


def hits(engine) -> tuple[float, float]:
    counters = engine.counters()
    return counters["prefix_hits_total"], counters["prefix_hit_tokens_total"]


def test_trial_80_a_prompt_is_found_again_by_its_tenant_and_by_no_other():
    engine = stub_engine()
    first = said(engine.complete([request("r", LONG, tenant="a", seed=1)])[0])
    assert hits(engine) == (0, 0)
    assert said(engine.complete([request("r", LONG, tenant="b", seed=1)])[0]) == first
    assert hits(engine) == (0, 0)
    assert said(engine.complete([request("r", LONG, tenant="a", seed=1)])[0]) == first
    assert hits(engine) == (1, 64)
    assert engine.counters()["prefix_query_tokens_total"] == 3 * 65


def test_trial_80_a_salt_that_is_ignored_would_be_noticed(monkeypatch):
    monkeypatch.setattr(scheduler, "root_key", lambda *_: b"everybody")
    with pytest.raises(AssertionError):
        test_trial_80_a_prompt_is_found_again_by_its_tenant_and_by_no_other()


def test_the_last_token_of_a_prompt_is_always_computed():
    runner = Recording(TOKENIZER.vocab_size, 4)
    engine = stub_engine(runner=runner)
    prompt = LONG[:63]  # 64 tokens: four full blocks
    expected = said(engine.complete([request("r", prompt)])[0])
    runner.calls.clear()
    assert said(engine.complete([request("r", prompt)])[0]) == expected
    assert hits(engine) == (1, 48) and [row.start for row in runner.calls[0]] == [48]


def test_an_answer_is_found_again_as_part_of_the_next_prompt():
    engine = stub_engine()
    (first,) = engine.complete([request("r", LONG, max_tokens=40, ignore_eos=True)])
    turn = request("next", LONG)
    longer = type(turn)("next", turn.prompt_ids + first.token_ids + (5,), turn.sampling)
    (second,) = engine.complete([longer])
    assert hits(engine) == (1, 96)  # 104 tokens are in the cache, six full blocks of them
    assert said(second) == said(stub_engine(prefix_cache=False).complete([longer])[0])


@pytest.mark.parametrize("n_slots", [1, 4])
def test_choices_share_the_prefill_of_their_prompt(n_slots):
    runner = Recording(TOKENIZER.vocab_size, n_slots)
    engine = stub_engine(n_slots=n_slots, runner=runner)
    got = engine.complete([request("r", LONG, n=4, seed=3)])
    read = [len(row.ids) for call in runner.calls for row in call if row.start < 65]
    assert sorted(read) == [1, 1, 1, 65] and hits(engine) == (3, 192)
    alone = stub_engine(prefix_cache=False).complete([request("r", LONG, n=4, seed=3)])
    assert [said(one) for one in got] == [said(one) for one in alone]


def test_choices_that_wait_for_the_first_count_as_waiting_and_end_with_it():
    engine = stub_engine(prefill_chunk=16, max_waiting=3)
    engine.submit(request("r", LONG, n=4))
    assert engine.counters()["waiting"] == 4
    engine.step()
    assert (engine.counters()["running"], engine.counters()["waiting"]) == (1, 3)
    engine.cancel("r")
    assert sorted(event.index for event in drain(engine)) == [0, 1, 2, 3]
    assert engine.counters()["waiting"] == engine.counters()["blocks_used"] == 0 and not engine.scheduler.followers


def test_a_request_for_the_prompts_log_probabilities_computes_all_of_it():
    engine = stub_engine()
    (first,) = engine.complete([request("r", LONG, prompt_logprobs=True)])
    (second,) = engine.complete([request("r", LONG, prompt_logprobs=True, n=2)])[:1]
    assert hits(engine) == (0, 0) and len(first.prompt_logprobs) == 65
    assert first.prompt_logprobs == second.prompt_logprobs
    engine.complete([request("r", LONG)])
    assert hits(engine) == (1, 64)


def test_without_the_prefix_cache_nothing_is_kept():
    engine = stub_engine(prefix_cache=False)
    engine.complete([request("r", LONG, n=2)] * 1)
    assert hits(engine) == (0, 0) and engine.counters()["blocks_cached"] == 0


def test_a_runner_that_keeps_states_shares_nothing():
    runner = StubRunner(TOKENIZER.vocab_size, 4)
    runner.shares = False
    engine = stub_engine(runner=runner)
    for _ in range(2):
        engine.complete([request("r", LONG, n=2)])
    assert hits(engine) == (0, 0) and engine.counters()["blocks_cached"] == 0


def test_prompts_that_differ_anywhere_before_a_block_do_not_share_it():
    engine, expected = stub_engine(), {}
    for place in range(0, 64, 7):
        prompt = LONG[:place] + "#" + LONG[place + 1 :]
        expected[prompt] = said(stub_engine().complete([request("r", prompt)])[0])
        assert said(engine.complete([request("r", prompt)])[0]) == expected[prompt]
    for prompt, one in expected.items():
        assert said(engine.complete([request("r", prompt)])[0]) == one


def test_a_hash_that_ignores_tokens_costs_hits_and_changes_no_answer(monkeypatch):
    monkeypatch.setattr("fledge.engine.choice.chain_key", lambda parent, tokens: prefix.chain_key(parent, ()))
    test_prompts_that_differ_anywhere_before_a_block_do_not_share_it()


def test_a_hash_that_ignores_tokens_and_is_believed_would_be_noticed(monkeypatch):
    """The control: contents are compared for a reason."""
    monkeypatch.setattr("fledge.engine.choice.chain_key", lambda parent, tokens: prefix.chain_key(parent, ()))
    monkeypatch.setattr(PrefixIndex, "find", lambda self, content: self.block_of.get(content.key))
    with pytest.raises(AssertionError):
        test_prompts_that_differ_anywhere_before_a_block_do_not_share_it()


def test_a_failed_request_leaves_nothing_wrong_behind():
    poison = TOKENIZER.encode("!")[0]
    engine = stub_engine(poison=frozenset([poison]))
    engine.submit(request("bad", LONG + "!"))
    engine.submit(request("good", LONG))
    assert joined(drain(engine), "good") == said(stub_engine().complete([request("good", LONG)])[0])
    assert said(engine.complete([request("good", LONG)])[0]) == said(stub_engine().complete([request("g", LONG)])[0])
