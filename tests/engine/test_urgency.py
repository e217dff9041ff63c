"""Priorities and deadlines: who goes first, who is too late, and that a late one never runs."""

from __future__ import annotations

import pytest

from fledge.errors import RequestError
from tests.engine.stub_engine import TOKENIZER, Recording, drain, joined, request, said, stub_engine


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_more_important_goes_first_and_equals_take_turns():
    engine = stub_engine(n_slots=1)
    plan = [
        ("a0", "a", 0),
        ("a1", "a", 0),
        ("b0", "b", 0),
        ("a2", "a", 5),
        ("b1", "b", 5),
        ("c", "c", -1),
        ("b2", "b", 0),
    ]
    for name, tenant, priority in plan:
        engine.submit(request(name, max_tokens=1, tenant=tenant, priority=priority))
    ended = [event.request_id for event in drain(engine) if event.finish_reason]
    assert ended == ["a2", "b1", "a0", "b0", "a1", "b2", "c"]


def test_who_waits_beyond_the_deadline_is_told_and_never_runs():
    clock, runner = Clock(), Recording(TOKENIZER.vocab_size, 1)
    engine = stub_engine(n_slots=1, runner=runner, clock=clock)
    engine.submit(request("runs", max_tokens=30, ignore_eos=True))
    engine.submit(request("late", "zzzz", deadline_seconds=2.0, n=2))
    engine.submit(request("in time", max_tokens=2, ignore_eos=True, deadline_seconds=200.0))
    engine.step()
    clock.now += 2.5
    events = engine.step()
    late = [event for event in events if event.request_id == "late"]
    assert sorted((e.index, e.finish_reason) for e in late) == [(0, "deadline"), (1, "deadline")]
    assert all("deadline" in event.error for event in late)
    events += drain(engine)
    assert joined(events, "in time")[2] == joined(events, "runs")[2] == "length"
    read = {token for call in runner.calls for row in call if row.start == 0 for token in row.ids}
    assert TOKENIZER.encode("z")[0] not in read
    assert engine.counters()["expired_total"] == 1 and not engine.deadlines


def test_who_runs_beyond_the_deadline_is_ended_and_frees_what_it_held():
    clock = Clock()
    engine = stub_engine(clock=clock)
    one = request("r", max_tokens=50, ignore_eos=True, deadline_seconds=1.0, seed=4)
    engine.submit(one)
    events = [event for _ in range(5) for event in engine.step()]
    clock.now += 1.0
    events += drain(engine)
    text, ids, finish = joined(events, "r")
    assert finish == "deadline" and ids == said(stub_engine().complete([one])[0])[1][:5]
    assert engine.counters()["blocks_used"] == engine.counters()["slots_in_use"] == 0


def test_a_request_without_a_deadline_or_in_time_is_not_ended():
    clock = Clock()
    engine = stub_engine(clock=clock)
    engine.submit(request("none", max_tokens=4, ignore_eos=True))
    engine.submit(request("enough", max_tokens=4, ignore_eos=True, deadline_seconds=5.0))
    events = engine.step()
    clock.now += 4.9
    events += drain(engine)
    assert {joined(events, name)[2] for name in ("none", "enough")} == {"length"} and not engine.deadlines


def test_who_waits_longer_than_it_may_for_a_slot_never_runs_and_who_has_one_keeps_it():
    clock, runner = Clock(), Recording(TOKENIZER.vocab_size, 1)
    engine = stub_engine(n_slots=1, runner=runner, clock=clock)
    engine.submit(request("runs", max_tokens=30, ignore_eos=True, queue_seconds=2.0))
    engine.submit(request("waits", "zzzz", max_tokens=2, queue_seconds=2.0))
    engine.submit(request("patient", max_tokens=2, ignore_eos=True, queue_seconds=50.0))
    engine.submit(request("left", "zzzz", queue_seconds=2.0))
    engine.step()
    engine.cancel("left")
    clock.now += 2.5
    events = engine.step()
    (late,) = [event for event in events if event.request_id == "waits"]
    assert late.finish_reason == "deadline" and "no slot" in str(late.error)
    clock.now += 40.0
    events += drain(engine)
    assert joined(events, "runs")[2] == joined(events, "patient")[2] == "length"
    read = {token for call in runner.calls for row in call if row.start == 0 for token in row.ids}
    assert TOKENIZER.encode("z")[0] not in read
    assert engine.counters()["expired_total"] == 1 and not engine.begin_by


def test_an_answer_that_gave_its_slot_back_is_not_late_for_the_line():
    clock = Clock()
    engine = stub_engine(n_slots=2, clock=clock)
    for name in ("a0", "a1"):
        engine.submit(request(name, tenant="a", max_tokens=9, ignore_eos=True, queue_seconds=1.0))
    engine.step()
    engine.submit(request("b0", tenant="b", max_tokens=9, ignore_eos=True))
    events = engine.step()
    assert engine.counters()["waiting"] == engine.counters()["preemptions_total"] == 1
    clock.now += 5.0
    events += drain(engine)
    assert {joined(events, name)[2] for name in ("a0", "a1", "b0")} == {"length"}


@pytest.mark.parametrize("settings", [
    {"priority": 1001}, {"priority": True}, {"priority": 0.5}, {"deadline_seconds": 0}, {"deadline_seconds": -1.0},
    {"deadline_seconds": float("nan")}, {"deadline_seconds": "2"}, {"queue_seconds": 0}, {"queue_seconds": True},
])  # fmt: skip
def test_priorities_and_deadlines_out_of_range_are_refused(settings):
    engine = stub_engine()
    with pytest.raises(RequestError, match=next(iter(settings))) as caught:
        engine.submit(request("r", **settings))
    assert caught.value.param in settings and not engine.has_work
