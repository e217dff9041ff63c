"""Who is let in: room, shares, and how long one would wait, against a line of answers that is played through."""

from __future__ import annotations

import heapq
import random
from collections import deque

import pytest

from fledge.serve.errors import ApiError
from fledge.serve.limits import Admission, Pace, fair_share


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(admission: Admission, n_choices: int, tenant: str) -> str:
    with pytest.raises(ApiError) as refused, admission.room_for(n_choices, tenant, close=True):
        pass
    assert (refused.value.status, refused.value.code) == (503, "overloaded")
    assert refused.value.headers["connection"] == "close"
    return f"{refused.value} {refused.value.headers['retry-after']}"


def test_admission_counts_what_is_in_work() -> None:
    admission = Admission(8)
    with admission.room_for(4, "a"), admission.room_for(3, "b"):
        assert "full" in refusal(admission, 2, "b")
        with admission.room_for(1, "b"):
            assert admission.in_work == 8
    assert admission.in_work == 0 and not admission.of_tenant


def test_one_tenant_gets_half_and_a_released_place_is_free_once() -> None:
    admission = Admission(8)
    with admission.room_for(1, "a") as place, admission.room_for(3, "a"):
        assert "One caller may have 4" in refusal(admission, 1, "a")
        with admission.room_for(4, "b"):
            place.release()
            place.release()
            with admission.room_for(1, "a"):
                assert admission.in_work == 8
    assert admission.in_work == 0 and not admission.of_tenant
    with Admission(1).room_for(1, "a"):  # the smallest server still serves
        pass


@pytest.mark.parametrize(("wanted", "others", "slots"), [
    (1, [], 1), (9, [], 8), (1, [100], 1), (9, [100], 4), (9, [1, 100], 3.5), (3, [1, 1, 1], 3), (5, [1, 1, 1], 5),
    (9, [8] * 15, 0.5), (2, [2, 2, 2, 2], 1.6),
])  # fmt: skip
def test_slots_are_shared_evenly_as_far_as_they_are_wanted(wanted: int, others: list[int], slots: float) -> None:
    assert fair_share(wanted, others, 8) == pytest.approx(slots)


def played(n_slots: int, seconds: list[float], n_waiting: int) -> tuple[list[float], list[float]]:
    """A line of one tenant that always has `n_waiting` answers waiting, each of which holds a slot for its `seconds`:
    how long each was expected to wait when it came, and how long it did."""
    clock = Clock()
    pace = Pace(n_slots, clock)
    line: deque[tuple[float, float]] = deque()
    ends: list[float] = []
    expected, waited = [], []
    for hold in seconds:
        while len(line) > n_waiting:
            clock.now = heapq.heappop(ends)
            pace.leave("a", 1, 1)
            came, length = line.popleft()
            waited.append(clock.now - came)
            heapq.heappush(ends, clock.now + length)
        expected.append(pace.wait_seconds("a"))
        pace.enter("a", 1)
        if len(ends) < n_slots:
            waited.append(0.0)
            heapq.heappush(ends, clock.now + hold)
        else:
            line.append((clock.now, hold))
    return expected[: len(waited)], waited


@pytest.mark.parametrize("n_slots", [1, 8])
def test_the_expected_wait_is_how_long_one_waits(n_slots: int) -> None:
    draw = random.Random(1)
    expected, waited = played(n_slots, [draw.uniform(0.5, 4.0) for _ in range(1000)], 4 * n_slots)
    mean_expected, mean_waited = (sum(some[100:]) / len(some[100:]) for some in (expected, waited))
    assert mean_expected == pytest.approx(mean_waited, rel=0.1)
    assert mean_waited > 4 * 2.25 * 0.9  # the control: four rounds of an answer's usual time at least


def test_the_expected_wait_follows_answers_that_become_longer() -> None:
    expected, waited = played(4, [1.0] * 200 + [5.0] * 200, 8)
    assert expected[190] == pytest.approx(waited[190], rel=0.3)
    assert expected[-1] == pytest.approx(waited[-1], rel=0.3) and expected[-1] > 3 * expected[190]


def test_who_would_wait_too_long_is_refused_and_told_when_to_come_back() -> None:
    clock = Clock()
    admission = Admission(1000, queue_seconds=14.0, n_slots=2)
    admission.pace = pace = Pace(2, clock)
    for _ in range(30):  # answers of four seconds, two at a time
        pace.enter("a", 2)
        clock.now += 4.0
        pace.leave("a", 2, 2)
    pace.enter("a", 6)
    with admission.room_for(1, "a"):  # 5 rounds of 2 s before it
        pass
    pace.enter("a", 2)
    assert "begin in some" in refusal(admission, 1, "a") and refusal(admission, 1, "a").endswith(" 14")
    with admission.room_for(1, "b"):  # another caller's share is free
        pass
    patient = Admission(1000, n_slots=2)
    patient.pace = pace
    with patient.room_for(1, "a"):  # the control: no limit, nobody refused
        pass
    pace.leave("a", 8, 0)
    with admission.room_for(1, "a"):
        pass


def test_before_any_answer_has_ended_nobody_is_refused_for_time() -> None:
    admission = Admission(1000, queue_seconds=0.001, n_slots=1)
    admission.pace.enter("a", 50)
    with admission.room_for(1, "a"):
        pass
