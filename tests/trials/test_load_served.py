"""Trials 61, 63, 114, 115 and 117 on a real server: what test_load.py plays through, with the machine in it.

The quick forms hold on a machine whose cores are busy with other tests, so their bounds on time are wide and what they
insist on is what load can't excuse: counts, tokens, statuses. The slow ones have the trial's own numbers, and want a
core that nobody else uses.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench import gate, scenes
from bench.floor import bare, first_tokens
from bench.served import served
from tests.serve.running import error_of, running, wait_until

TEXT = "stub:text=" + "now%20is%20the%20time%20" * 6  # ASCII: a token is a byte


def test_61_who_waited_too_long_is_told_503_and_never_runs() -> None:
    with running("stub:delay_ms=20", "engine.n_slots=1", "queue_seconds=0.4") as server, ThreadPoolExecutor(3) as pool:
        busy = pool.submit(server.complete, max_tokens=150, ignore_eos=True, seed=1)
        wait_until(lambda: server.metric("fledge_num_requests_running") == 1, 5)
        began = time.monotonic()
        for answer in pool.map(lambda stream: server.complete("z", max_tokens=5, stream=stream), (False, True)):
            assert answer.status_code == 503 and error_of(answer)["code"] == "overloaded"
            assert int(answer.headers["retry-after"]) >= 1
        assert 0.4 <= time.monotonic() - began < 2
        assert not busy.done() and busy.result().status_code == 200  # the control: who has a slot keeps it
        made = server.metric("fledge_engine_generated_tokens_total")
        assert made == server.metric("fledge_generation_tokens_total") == 150
        assert server.metric("fledge_engine_expired_total") == 2
        assert server.complete(max_tokens=2).status_code == 200


def test_61_without_a_limit_they_wait_until_it_is_their_turn() -> None:
    """The control."""
    with running("stub:delay_ms=10", "engine.n_slots=1", "queue_seconds=0") as server, ThreadPoolExecutor(3) as pool:
        busy = pool.submit(server.complete, max_tokens=100, ignore_eos=True, seed=1)
        wait_until(lambda: server.metric("fledge_num_requests_running") == 1, 5)
        assert server.complete("z", max_tokens=5, seed=1).status_code == 200 and busy.done()


def overloaded(seconds: float, max_tokens: int, queue_seconds: float) -> dict[str, Any]:
    with served("stub:delay_ms=20", "engine.n_slots=4", f"queue_seconds={queue_seconds:g}") as server:
        found = asyncio.run(scenes.overload(server, max_tokens, 4, seconds, queue_seconds))
    print(found)
    assert found["refused_at_once"] > found["requests"] / 2 and found["other"] == 0
    assert found["retry_after_is_an_integer"] and found["tokens_made_for_nobody"] == 0
    assert found["normal_after_seconds"] <= 5
    first, early, last = found["memory_mib"]
    assert last <= 1.05 * max(first, early)
    return found


def test_61_ten_times_the_requests_it_can_answer_for_a_moment() -> None:
    found = overloaded(2.0, 12, 0.5)
    assert found["refusal_ms"]["p50"] <= 100


@pytest.mark.slow
def test_61_ten_times_the_requests_it_can_answer_for_a_minute() -> None:
    found = overloaded(60.0, 25, 1.0)
    assert found["refusal_ms"]["p99"] <= 100
    assert found["admitted_in_time"] >= 0.9 and found["throughput_of_peak"] >= 0.9


@pytest.mark.slow
def test_63_another_keys_flood_and_long_prompts() -> None:
    model = "stub:delay_ms=5&token_ms=0.2"
    with served(model) as server:
        found = asyncio.run(scenes.fairness(server, 200, 5.0, 24, 48))
        control = asyncio.run(scenes.fairness(server, 40, 5.0, 24, 48, other="127.0.0.1"))
        print(found, control)
    assert found["p99_ratio"] <= 2 and found["refused"] == 0
    assert control["p99_ratio"] > 4  # one caller to the server: behind its own flood
    gaps = {}
    for chunk in (32, 512):
        with served(model, f"engine.prefill_chunk={chunk}") as server:
            found = asyncio.run(scenes.long_prompts(server, 4, 300, 400, 8))
            print(found)
            gaps[chunk] = found["beside_ms"]["p99"]
    bound = 2 * 5 + 32 * 0.2  # milliseconds: the two passes of a step, and a chunk
    assert gaps[32] <= 1.5 * bound < gaps[512]


def test_114_the_servers_own_work_for_a_token() -> None:
    """In CPU time, which other tests on the same core hardly change."""
    model = "stub:delay_ms=5"
    with served(model) as server:
        found = asyncio.run(scenes.overhead(server, model, 30, 15.0, 24))
    print(found)
    assert found["answered"] == 30
    assert 10 < found["cpu_microseconds_per_token"] <= 700


@pytest.mark.parametrize("kind", ["alone", "behind"])
def test_114_servers_that_do_nothing_answer_the_same_client(kind: str) -> None:
    """What the machine itself takes is measured by them (bench/floor.py)."""
    with bare(kind) as server:
        assert len(first_tokens(server, 5, 100.0, seed=1)) == 5
        first = asyncio.run(scenes.sender(server, 32, 1)(0))
    assert first.answered and first.n_tokens == 1 and first.text == "a"


@pytest.mark.slow
def test_114_what_http_adds_to_the_first_token() -> None:
    """The trial's 10 ms for the 99th percentile. Its 2 ms for the median were never measured: with client, server and
    engine on one core it was 5.3."""
    model = "stub:delay_ms=5"
    with served(model) as server:
        found = asyncio.run(scenes.overhead(server, model, 600, 20.0, 24))  # 8 slots: some 43 a second are full load
    print(found)
    assert found["added_ttft_ms"]["p50"] <= 8 and found["added_ttft_ms"]["p99"] <= 10


def check_truth(found: dict[str, Any], n: int, tokens: int) -> None:
    assert found["answered"] == n and found["requests"] == 1
    assert found["tokens_server"] == found["tokens_usage"] == found["tokens_recounted"] == n * tokens
    assert found["prompt_tokens_server"] == found["prompt_tokens_usage"] == n * 33


def test_117_tokens_are_counted_exactly_and_times_are_the_clients() -> None:
    with served(f"{TEXT}&delay_ms=60") as server:
        found = asyncio.run(scenes.truth(server, 16, 8, 20))
    check_truth(found, 16, 20)
    assert found["e2e"] == pytest.approx(1, abs=0.05) and found["itl"] == pytest.approx(1, abs=0.05)


def test_117_another_clock_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: a client whose clock is a tenth slow finds figures that don't match."""
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 0.9 * clock())
    with served(f"{TEXT}&delay_ms=60") as server:
        found = asyncio.run(scenes.truth(server, 8, 8, 20))
    assert found["itl"] > 1.05 and found["e2e"] > 1.05


@pytest.mark.slow
def test_117_three_runs_agree_and_a_tenth_less_fails_the_gate(tmp_path: Path) -> None:
    def run(delay_ms: float) -> dict[str, Any]:
        with served(f"{TEXT}&delay_ms={delay_ms:g}") as server:
            found = asyncio.run(scenes.truth(server, 12, 4, 80))  # long: who is read beside whom moves single steps
        check_truth(found, 12, 80)
        assert all(found[name] == pytest.approx(1, abs=0.05) for name in ("ttft", "itl", "e2e"))
        return found

    runs = [run(100.0) for _ in range(3)]
    speeds = [found["tokens_per_second"] for found in runs]
    assert max(speeds) <= 1.05 * min(speeds)
    assert gate.worse(runs[0], runs[1]) == []
    assert any("tokens_per_second" in line for line in gate.worse(runs[0], run(112.0)))
