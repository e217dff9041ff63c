"""Trials 61, 63, 115 and 117 in played time: overload, fairness, goodput, and whether a loss of speed is noticed.

The engine and the server's admission are the real ones; seconds are a clock's that the forward passes move, so these
hold on any machine, however busy. What the machine adds is in test_load_served.py.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache

import pytest

from bench import gate
from bench.load import Outcome, goodput, interval, percentile, poisson_times, spread, throughput
from fledge.engine.request import Request
from tests.serve.running import ROOT
from tests.trials.timed import STEP, TOKEN, Played, Told

N_SLOTS, ANSWER = 8, 40
QUEUE_SECONDS = 1.0
PER_TOKEN = 4 * STEP  # a step with a prompt in it is two passes and some


def answers(played: Played, n: int) -> list[Request]:
    """Requests whose answers are of 20 to 60 tokens, so that they don't begin and end together."""
    return [played.ask(f"r{i}", 16, ANSWER // 2 + 7 * i % (ANSWER + 1)) for i in range(n)]


@cache
def capacity() -> float:
    """Answers a second when every slot is always busy."""
    played = Played(N_SLOTS)
    told = played.play([(0.0, request) for request in answers(played, 20 * N_SLOTS)])
    return len(told) / played.clock.now


def offered(times: float, seconds: float, queue_seconds: float) -> tuple[list[Told], Played, float]:
    """What becomes of `times` as many requests as can be answered, the server they came to, and the capacity."""
    rate = capacity()
    played = Played(N_SLOTS, queue_seconds)
    arrivals = poisson_times(times * rate, int(times * rate * seconds), seed=1)
    told = played.play(list(zip(arrivals, answers(played, len(arrivals)), strict=True)))
    return list(told.values()), played, rate


def in_time(told: list[Told], queue_seconds: float = QUEUE_SECONDS) -> float:
    """Share of the admitted that began and went on as promised."""
    admitted = [one for one in told if one.refused is None]
    good = [one for one in admitted if one.answered and one.first <= queue_seconds + 0.1]
    return sum(sum(one.gaps) / len(one.gaps) <= PER_TOKEN for one in good) / len(admitted)


def test_61_at_ten_times_its_capacity_a_server_serves_who_it_lets_in_at_full_speed() -> None:
    told, played, rate = offered(10.0, 30.0, QUEUE_SECONDS)
    refused = [one for one in told if one.refused is not None]
    assert len(refused) > 0.8 * len(told) and all(1 <= (one.refused or 0) <= 30 for one in refused)
    assert in_time(told) >= 0.9
    answered = [one for one in told if one.answered]
    assert len(answered) / max(one.times[-1] for one in answered) >= 0.9 * rate
    late = [one for one in told if one.finish == "deadline"]
    assert all(one.n_tokens == 0 for one in late)  # never begun
    assert played.engine.counters()["generated_tokens_total"] == sum(one.n_tokens for one in answered)
    flood_ends = max(one.at for one in told)
    assert played.clock.now < flood_ends + 5
    (after,) = played.play([(played.clock.now, played.ask("after", 16, ANSWER))]).values()
    assert after.first < 3 * STEP
    assert not played.admission.of_tenant and not played.admission.pace.of_tenant and not played.places


def test_61_without_a_limit_almost_everybody_waits_too_long() -> None:
    """The control."""
    told, played, _ = offered(3.0, 6.0, 0.0)
    assert not [one for one in told if one.refused is not None]
    assert in_time(told) < 0.4
    assert played.clock.now > max(one.at for one in told) + 5


def latencies(other: str, flood: bool) -> float:
    """p99 time to first token of one caller's requests, beside a flood of another's or alone."""
    played = Played(N_SLOTS)
    arrivals = [(1.0 + at, played.ask(f"o{i}", 128, 10, other)) for i, at in enumerate(poisson_times(5.0, 80, seed=2))]
    if flood:
        arrivals += [(0.1 * i, played.ask(f"f{i}", 16, ANSWER, "flood")) for i in range(150)]
        arrivals += [(0.0, played.ask(f"g{i}", 16, ANSWER, "flood")) for i in range(150)]
    told = played.play(arrivals)
    return percentile([one.first for name, one in told.items() if name[0] == "o"], 99)


def test_63_one_callers_flood_hardly_delays_another() -> None:
    quiet = latencies("other", False)
    assert latencies("other", True) <= 2 * quiet
    assert latencies("flood", True) > 20 * quiet  # the control: as one caller they wait behind the flood


def running_gap(prefill_chunk: int) -> float:
    """p99 time between tokens of running answers while long prompts are read."""
    played = Played(N_SLOTS, prefill_chunk=prefill_chunk)
    short = [(0.0, played.ask(f"s{i}", 16, 400)) for i in range(4)]
    long = [(0.3 + 0.3 * i, played.ask(f"l{i}", 900, 1)) for i in range(8)]
    told = played.play([*short, *long])
    gaps = sorted(gap for name, one in told.items() if name[0] == "s" for gap in one.gaps)
    assert sum(gap > 1.5 * STEP for gap in gaps) > 100 if prefill_chunk < 100 else True  # there was something to read
    return percentile(gaps, 99)


def test_63_a_long_prompt_holds_running_answers_up_by_one_chunk_at_most() -> None:
    bound = 2 * STEP + 64 * TOKEN
    assert running_gap(64) <= bound + 1e-9
    assert running_gap(1024) > 3 * bound  # the control: read in one piece


def test_115_goodput_holds_below_capacity_and_throughput_above_it() -> None:
    good, rate_of = {}, {}
    for times, queue_seconds in ((0.75, 1.0), (1.2, 1.0), (1.2, 0.0)):
        told, _, rate = offered(times, 40.0, queue_seconds)
        answered = [one for one in told if one.answered]
        good[times, queue_seconds] = len([1 for one in answered if one.first <= QUEUE_SECONDS + 0.1]) / len(told)
        rate_of[times, queue_seconds] = len(answered) / max(one.times[-1] for one in answered) / rate
    assert good[0.75, 1.0] >= 0.95
    assert rate_of[1.2, 1.0] >= 0.85
    assert good[1.2, 1.0] > 0.8 > 1.5 * good[1.2, 0.0]  # the control: where nobody is refused, few are served in time


def outcome(due: float, times: list[float], n: int, status: int = 200) -> Outcome:
    found = Outcome(due, status, text_times=times, finish_reason="length" if status == 200 else None)
    found.usage, found.ended = {"prompt_tokens": 1, "completion_tokens": n}, (times or [due])[-1]
    return found


def test_115_the_formulas_are_what_they_are_said_to_be() -> None:
    one = outcome(10.0, [10.5, 10.6, 10.9], 3)
    assert one.first == pytest.approx(0.5) and one.gaps == pytest.approx([0.1, 0.3])
    assert one.per_token == pytest.approx(0.2) and one.whole == pytest.approx(0.9)
    slow, refused = outcome(10.0, [12.0, 12.1], 2), outcome(10.0, [], 0, 503)
    assert throughput([one, slow, refused]) == pytest.approx(5 / 2.1)
    assert goodput([one, slow, refused], 1.0, 0.25) == pytest.approx(1 / 3)
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5 and percentile(range(101), 99) == 99
    values = [float(i % 100) for i in range(1000)]
    low, high = interval(values, 50)
    assert low <= 49.5 <= high and high - low < 10
    assert interval(values[:50], 50)[1] - interval(values[:50], 50)[0] > high - low  # fewer say less
    assert spread([0.001 * i for i in range(101)])["p99"] == 99.0


def test_115_requests_come_at_the_rate_that_was_asked_for() -> None:
    times = poisson_times(50.0, 5000, seed=1)
    assert times == sorted(times) and 5000 / times[-1] == pytest.approx(50, rel=0.05)
    gaps = [after - before for before, after in zip(times, times[1:], strict=False)]
    assert sum(gap < 0.02 for gap in gaps) / len(gaps) == pytest.approx(0.632, abs=0.03)  # 1 - 1/e


RESULT = {"sweep": {"8": {"tokens_per_second": 600.0, "ttft_ms": {"p50": 40.0, "p99": 90.0}}}, "goodput": 0.97}


@pytest.mark.parametrize(("place", "factor", "found"), [
    ("tokens_per_second", 0.9, 1), ("tokens_per_second", 0.96, 0), ("tokens_per_second", 1.3, 0), ("p50", 1.1, 1),
    ("p50", 1.04, 0), ("p50", 0.5, 0), ("p99", 3.0, 0),
])  # fmt: skip
def test_117_a_loss_of_a_tenth_fails_the_gate(place: str, factor: float, found: int) -> None:
    after = copy.deepcopy(RESULT)
    figures = after["sweep"]["8"]  # type: ignore[index]
    (figures if place in figures else figures["ttft_ms"])[place] *= factor
    assert len(gate.worse(RESULT, after)) == found


def test_117_the_gate_as_a_command(tmp_path: object) -> None:
    paths = [f"{tmp_path}/{name}.json" for name in ("before", "after")]
    for path, speed in zip(paths, (600.0, 540.0), strict=True):
        with open(path, "w") as file:
            json.dump({"sweep": {"tokens_per_second": speed}}, file)
    words = [sys.executable, str(ROOT / "bench" / "gate.py")]
    failed = subprocess.run([*words, *paths], capture_output=True, text=True)
    assert failed.returncode == 1 and "sweep tokens_per_second: 600 before, 540 now, 10.0 % worse" in failed.stdout
    assert subprocess.run([*words, paths[0], paths[0]], capture_output=True).returncode == 0
