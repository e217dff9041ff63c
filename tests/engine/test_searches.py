"""Beam searches beside an engine's other answers: nobody's tokens change, everybody gets on, nothing is left over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fledge.engine import searches
from fledge.engine.beam import Places, Search, beam_search
from fledge.engine.core import Engine
from fledge.engine.request import BeamSearch, Completion, Request, Sampling
from fledge.engine.stub import StubRunner
from fledge.errors import CapacityError, EngineError, RequestError
from fledge.text.tokenizer import characters
from tests.engine.stub_engine import TOKENIZER, drain, request, stub_engine

WIDE = BeamSearch(3, length_penalty=0.7, early_stopping=True)


def sought(name: str, prompt: str = "hello", search: BeamSearch = WIDE, max_tokens: int = 9, **more) -> Request:
    n = more.pop("n", 2)
    stops = more.pop("stop_token_ids", ())
    asked = request(name, prompt, **more)
    return replace(asked, sampling=Sampling(max_tokens, n=n, stop_token_ids=stops), search=search)


def alone(asked: Request, stop_ids: set[int] | None = None) -> list[tuple[tuple[int, ...], float]]:
    """What a search says that has a runner of its own."""
    assert asked.search is not None
    search = replace(asked.search, max_tokens=asked.sampling.max_tokens)
    stops = set(TOKENIZER.stop_ids) | set(asked.sampling.stop_token_ids) | (stop_ids or set())
    runner = StubRunner(TOKENIZER.vocab_size, 8)
    found = beam_search(runner, asked.prompt_ids, search, stops, TOKENIZER.vocab_size)
    return [(one.token_ids, one.score) for one in found[: asked.sampling.n]]


def said(completions: list[Completion]) -> list[tuple[tuple[int, ...], float | None]]:
    return [(one.token_ids, one.score) for one in completions]


def nothing_is_held(engine: Engine) -> None:
    pool = engine.scheduler.pool
    assert sorted(engine.scheduler.free_slots) == list(range(engine.runner.n_slots))
    assert pool.n_held == 0 and pool.n_free + len(pool.idle) == pool.n_blocks
    assert not (engine.has_work or engine.deadlines or engine.begin_by or engine.searches.running)


SOUGHT = "a prompt of a search, over a block"
MIX = [request(f"other {n}", f"another prompt {n}, somewhat longer than a block", n=2, max_tokens=20, seed=n)
       for n in range(4)]  # fmt: skip


def test_a_search_finds_what_it_finds_alone_and_tells_text_and_scores() -> None:
    engine = stub_engine(n_slots=4)
    for asked in (
        sought("a"),
        sought("b", "a longer prompt " * 4, BeamSearch(4), n=4),
        sought("c", search=BeamSearch(1), n=1),
    ):
        found = engine.complete([asked])
        assert said(found) == alone(asked)
        for one in found:
            stopped = one.token_ids[-1] in TOKENIZER.stop_ids
            assert one.text == TOKENIZER.decode(one.token_ids[:-1] if stopped else one.token_ids)
            assert one.finish_reason == ("stop" if stopped else "length")
    first = alone(sought("a"))[0][0]
    cut = sought("d", stop_token_ids=(first[4],))
    assert said(engine.complete([cut])) == alone(cut) != alone(sought("a"))
    nothing_is_held(engine)


@pytest.mark.parametrize("settings", [{}, {"prefix_cache": False}, {"n_blocks": 40}, {"prefill_chunk": 8}])
def test_others_say_what_they_say_without_it_and_it_says_what_it_says_alone(settings) -> None:
    without = {(one.request_id, one.index): one.token_ids for one in stub_engine(n_slots=6, **settings).complete(MIX)}
    engine = stub_engine(n_slots=6, **settings)
    both = [
        MIX[0],
        sought("search", SOUGHT),
        *MIX[1:],
        sought("next", "b", max_tokens=14),
    ]
    found = engine.complete(both)
    others = {(one.request_id, one.index): one.token_ids for one in found if one.score is None}
    assert others == without
    for asked in (both[1], both[-1]):
        assert said([one for one in found if one.request_id == asked.id]) == alone(asked)
    nothing_is_held(engine)


def test_a_search_in_blocks_of_others_would_be_seen(monkeypatch) -> None:
    """The control of the test above."""
    without = {(one.request_id, one.index): one.token_ids for one in stub_engine(n_slots=6).complete(MIX)}

    def anywhere(runner, blocks, *rest):
        return Places(runner, range(len(blocks)), *rest)

    monkeypatch.setattr(searches, "Places", anywhere)
    found = stub_engine(n_slots=6).complete([*MIX, sought("search", SOUGHT)])
    wrong = [one for one in found if one.score is None and one.token_ids != without[one.request_id, one.index]]
    assert wrong or said([one for one in found if one.score is not None]) != alone(sought("search", SOUGHT))


def test_later_answers_wait_for_a_search_that_waits_and_earlier_ones_go_first() -> None:
    engine = stub_engine(n_slots=4)
    engine.submit(request("early", n=3, max_tokens=10))
    engine.step()
    engine.submit(sought("search"))
    engine.submit(request("late", max_tokens=4))
    engine.submit(request("urgent", max_tokens=4, priority=1))
    order = [event.request_id for event in drain(engine) if event.finish_reason]
    assert order.index("urgent") < order.index("early") < order.index("search")
    assert order.index("early") < order.index("late")
    nothing_is_held(engine)
    free = stub_engine(n_slots=4)  # the control: without a search the late one has the slot that is free
    free.submit(request("early", n=3, max_tokens=10))
    free.step()
    free.submit(request("late", max_tokens=4))
    order = [event.request_id for event in drain(free) if event.finish_reason]
    assert order.index("late") < order.index("early")


def ends(engine: Engine) -> list[str]:
    """The requests in the order in which they end."""
    return [event.request_id for event in drain(engine) if event.finish_reason and event.index == 0]


def test_a_more_important_answer_goes_before_a_search_whenever_it_came() -> None:
    engine = stub_engine(n_slots=3)
    engine.submit(sought("search", max_tokens=20))
    engine.submit(request("urgent", max_tokens=3, priority=5))
    assert ends(engine) == ["urgent", "search"]
    equal = stub_engine(n_slots=3)  # the control
    equal.submit(sought("search", max_tokens=20))
    equal.submit(request("later", max_tokens=3))
    assert ends(equal) == ["search", "later"]
    full = stub_engine(n_slots=3)
    full.submit(request("early", n=3, max_tokens=4, ignore_eos=True, priority=9))
    full.step()
    full.submit(sought("search", max_tokens=20))
    full.submit(request("urgent", max_tokens=3, priority=5))
    assert ends(full) == ["early", "urgent", "search"]
    for one in (engine, equal, full):
        nothing_is_held(one)


def test_of_several_searches_the_most_important_go_first_and_among_equals_tenants_take_turns() -> None:
    engine = stub_engine(n_slots=4)
    for name in ("a 0 first", "a 0 second", "a 0 third", "b 0 first", "b 0 second", "a 9 first", "a 9 second", "b 9"):
        engine.submit(sought(name, tenant=name[0], priority=int(name[2])))
    urgent, others = ["a 9 first", "b 9", "a 9 second"], ["b 0 first", "a 0 first", "b 0 second", "a 0 second"]
    assert ends(engine) == [*urgent, *others, "a 0 third"]


def test_an_urgent_search_waits_for_no_flood_of_less_important_answers() -> None:
    engine = stub_engine(n_slots=3)
    for number in range(8):
        engine.submit(request(f"flood{number}", max_tokens=6, priority=1, ignore_eos=True))
    engine.step()
    engine.submit(sought("search"))
    engine.submit(sought("urgent", priority=9))
    ended: list[str] = []
    for number in range(8, 60):
        engine.submit(request(f"flood{number}", max_tokens=6, priority=1, ignore_eos=True))
        ended += [event.request_id for event in engine.step() if event.finish_reason and event.index == 0]
    assert ended[:4] == ["flood0", "flood1", "flood2", "urgent"]
    assert "search" not in ended  # the control: one that matters less than the flood waits for its end
    assert "search" in ends(engine)
    nothing_is_held(engine)


def small(n: int, max_tokens: int, stop_token_ids: tuple[int, ...] = (), **settings: float) -> Request:
    """A search over the five ids of `DNA`."""
    search = BeamSearch(8, **settings)  # type: ignore[arg-type]
    return Request("r", (0, 1), Sampling(max_tokens, n=n, stop_token_ids=stop_token_ids), search=search)


DNA = characters("ACGT")  # and an unknown one


def test_more_answers_than_there_are_over_a_small_vocabulary_are_refused() -> None:
    engine = stub_engine(n_slots=8, tokenizer=DNA)
    for asked in (small(6, 1), small(8, 1)):
        with pytest.raises(RequestError, match="n: expected at most 5, all the answers of 1 tokens over 5 ids"):
            engine.submit(asked)
    nothing_is_held(engine)
    groups = small(8, 1, n_groups=2, diversity_penalty=1.0)  # each finds its own four
    for asked in (small(5, 1), small(8, 2), small(8, 400), groups):  # the control
        assert len(engine.complete([asked])) == asked.sampling.n


def test_answers_that_stops_leave_no_room_for_end_with_an_error_that_says_so() -> None:
    engine = stub_engine(n_slots=8, tokenizer=DNA)
    few = small(8, 2, (0, 1, 2, 3, 4))
    engine.submit(few)
    told = {event.index: event for event in drain(engine)}
    assert [told[index].finish_reason for index in range(8)] == ["stop"] * 5 + ["error"] * 3
    assert "n: expected at most 5" in str(told[5].error) and "got 8" in str(told[5].error) and told[4].error is None
    nothing_is_held(engine)
    with pytest.raises(EngineError, match="n: expected at most 5"):
        engine.complete([few])
    nothing_is_held(engine)
    assert len(engine.complete([small(8, 2, (0, 1, 2, 3))])) == 8  # the control


def test_a_search_that_finds_no_answer_ends_too(monkeypatch) -> None:
    engine = stub_engine()
    monkeypatch.setattr(Search, "answers", lambda self: [])
    engine.submit(sought("a"))
    told = drain(engine)
    assert [event.finish_reason for event in told] == ["error", "error"] and engine.totals["failed"] == 0
    assert all("n: expected at most 0" in str(event.error) for event in told)
    nothing_is_held(engine)


def test_answers_go_on_beside_a_search_and_tenants_take_turns() -> None:
    engine = stub_engine(n_slots=4)
    for number in range(3):
        engine.submit(sought(f"a{number}", tenant="a"))
    engine.submit(sought("b", tenant="b"))
    engine.submit(request("answer", max_tokens=20))
    order, beside = [], 0
    while engine.has_work:
        events = engine.step()
        order += [event.request_id for event in events if event.finish_reason and event.index == 0]
        beside += bool(engine.searches.running) and any(event.request_id == "answer" for event in events)
    assert order.index("b") == 1 and [one for one in order if one[0] == "a" and one != "answer"] == ["a0", "a1", "a2"]
    assert beside > 5
    nothing_is_held(engine)


def test_what_is_cancelled_or_late_is_given_up_and_leaves_nothing() -> None:
    now = [0.0]
    engine = stub_engine(n_slots=4, clock=lambda: now[0])
    engine.submit(sought("running", deadline_seconds=50))
    engine.submit(sought("waits", queue_seconds=5))
    engine.step()
    assert engine.counters()["running"] == 3 and engine.counters()["waiting"] == 3
    now[0] = 6
    late = [event for event in engine.step() if event.request_id == "waits"]
    assert [event.finish_reason for event in late] == ["deadline", "deadline"] and "no slot" in (late[0].error or "")
    engine.submit(sought("gone"))
    engine.cancel("gone")
    engine.cancel("running")
    assert {event.finish_reason for event in engine.step()} == {"cancelled"}
    nothing_is_held(engine)
    engine.submit(sought("slow", deadline_seconds=1))
    engine.step()
    now[0] = 8
    assert {event.finish_reason for event in drain(engine)} == {"deadline"}
    nothing_is_held(engine)
    assert said(engine.complete([sought("after")])) == alone(sought("after"))


def test_a_search_that_fails_fails_alone(capfd) -> None:
    first = alone(sought("a"))[0][0]
    engine = stub_engine(n_slots=6, runner=StubRunner(TOKENIZER.vocab_size, 6, poison=frozenset({first[2]})))
    engine.submit(sought("fails"))
    engine.submit(request("other", "fine", max_tokens=2))
    events = drain(engine)
    assert {event.finish_reason for event in events if event.request_id == "fails"} == {"error"}
    assert {event.finish_reason for event in events if event.request_id == "other"} >= {"length"}
    assert "Traceback" in capfd.readouterr().err
    nothing_is_held(engine)


def test_what_does_not_go_with_a_search_is_refused_by_name() -> None:
    engine = stub_engine(n_slots=4, max_waiting=4)
    asked = sought("a")
    for name, value in (("top_k", 3), ("top_p", 0.5), ("stop", ("x",)), ("logprobs", 1), ("temperature", 0.5),
                        ("min_tokens", 2), ("logit_bias", ((3, 1.0),)), ("repetition_penalty", 1.2)):  # fmt: skip
        with pytest.raises(RequestError) as refused:
            engine.submit(replace(asked, sampling=replace(asked.sampling, **{name: value})))
        assert refused.value.param == name
    with pytest.raises(RequestError, match="does not go with a beam search") as refused:
        engine.submit(replace(asked, prompt_logprobs=True))
    assert refused.value.param == "prompt_logprobs"
    for search, n, param in ((BeamSearch(2), 3, "n"), (BeamSearch(5), 1, "n_beams"), (BeamSearch(65), 1, "n_beams")):
        with pytest.raises(RequestError) as refused:
            engine.submit(sought("b", search=search, n=n))
        assert refused.value.param == param
    with pytest.raises(RequestError, match="blocks"):
        stub_engine(n_slots=4, n_blocks=5).submit(sought("c", max_tokens=40))
    engine.submit(sought("one"))
    engine.submit(sought("two"))
    with pytest.raises(RequestError, match="different|new request id"):
        engine.submit(sought("two"))
    with pytest.raises(CapacityError, match="expected room for 3"):
        engine.submit(sought("three"))
    drain(engine)
    nothing_is_held(engine)
    assert engine.totals["requests"] == 2


def test_new_weights_end_a_search_under_way_and_not_one_that_waits() -> None:
    engine = stub_engine(n_slots=4)
    engine.runner.load_weights = lambda state: None  # type: ignore[method-assign]
    engine.submit(sought("begun"))
    engine.submit(sought("waits"))
    engine.step()
    engine.load_weights({}, "second")
    reasons = {(event.request_id, event.finish_reason) for event in drain(engine)}
    assert {reason for name, reason in reasons if name == "begun"} == {"error"}
    assert {reason for name, reason in reasons if name == "waits"} <= {"length", "stop"}
    assert len(reasons) > 1
    nothing_is_held(engine)
