"""Slots between tenants: who has the most gives one up to who has the fewest, and loses no token by it."""

from __future__ import annotations

from fledge.engine.core import Engine
from fledge.engine.request import Event
from tests.engine.stub_engine import drain, joined, request, said, stub_engine


def flooded(**settings: object) -> tuple[Engine, list[Event]]:
    """An engine of four slots, all of which one tenant holds, with two of its answers waiting."""
    engine = stub_engine(n_slots=4, **settings)  # type: ignore[arg-type]
    for number in range(6):
        engine.submit(request(f"flood{number}", tenant="flood", max_tokens=40, ignore_eos=True, seed=number))
    events = [event for _ in range(20) for event in engine.step()]
    return engine, events


def first_step_of(engine: Engine, name: str, events: list[Event]) -> int:
    """Steps until the first event of a request."""
    for number in range(1, 200):
        told = engine.step()
        events += told
        if any(event.request_id == name for event in told):
            return number
    raise AssertionError(f"{name} was not answered")


def test_a_tenant_without_a_slot_gets_one_of_a_flood_at_once():
    engine, _ = flooded()
    engine.submit(request("single", tenant="other", max_tokens=3))
    assert first_step_of(engine, "single", []) == 1


def test_without_shared_blocks_nobody_gives_way():
    """The control: what was computed would have to be computed again."""
    engine, _ = flooded(prefix_cache=False)
    engine.submit(request("single", tenant="other", max_tokens=3))
    assert first_step_of(engine, "single", []) > 15


def test_who_gave_its_slot_up_says_what_it_would_have_said():
    engine, events = flooded()
    for number in range(3):
        engine.submit(request(f"other{number}", tenant="other", max_tokens=20, ignore_eos=True, seed=10 + number))
    events += drain(engine)
    assert engine.counters()["preemptions_total"] == 2  # then both have two: nobody has more than a share
    for number in range(6):
        alone = request("r", max_tokens=40, ignore_eos=True, seed=number)
        assert joined(events, f"flood{number}") == said(stub_engine().complete([alone])[0])
    assert engine.counters()["blocks_used"] == engine.counters()["slots_in_use"] == 0


def test_equal_tenants_do_not_take_slots_from_each_other():
    engine = stub_engine(n_slots=4)
    for number in range(20):
        engine.submit(request(f"r{number}", tenant="ab"[number % 2], max_tokens=10, ignore_eos=True))
    drain(engine)
    assert engine.counters()["preemptions_total"] == 0


def test_the_youngest_of_the_tenant_that_has_the_most_gives_way():
    engine = stub_engine(n_slots=4)
    for name, tenant in (("a0", "a"), ("b0", "b"), ("a1", "a"), ("a2", "a")):
        engine.submit(request(name, tenant=tenant, max_tokens=30, ignore_eos=True))
        engine.step()
    engine.submit(request("c0", tenant="c", max_tokens=2))
    assert first_step_of(engine, "c0", []) == 1
    running = {choice.request.id for choice in engine.scheduler.running}
    assert running == {"a0", "b0", "a1", "c0"}


def test_nobody_gives_way_to_one_whose_blocks_are_not_there():
    engine = stub_engine(n_slots=4, n_blocks=12)
    for number in range(4):
        engine.submit(request(f"r{number}", "x" * 30, tenant="flood", max_tokens=16, ignore_eos=True))
    engine.step()
    engine.submit(request("large", "y" * 150, tenant="other", max_tokens=2))
    for _ in range(5):
        engine.step()
    assert engine.counters()["preemptions_total"] == 0 and engine.counters()["running"] == 4
    drain(engine)
