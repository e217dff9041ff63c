"""The engine process and its client: started, supervised, killed, drained, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fledge.engine import line, pending
from fledge.engine.client import EngineClient
from fledge.engine.load import load_engine
from fledge.engine.request import Request
from fledge.errors import CapacityError, ConfigError, EngineError, RequestError
from tests.engine.clients import lives, read, until, with_client
from tests.engine.stub_engine import TOKENIZER, joined, request, said

SLOW = "stub:delay_ms=20&context_tokens=4096"


def test_answers_through_the_process_are_those_of_the_core():
    wanted = [request(f"r{i}", f"prompt {i}", seed=i, n=1 + i % 2, logprobs=2) for i in range(6)]
    wanted.append(request("p", prompt_logprobs=True, logprobs=1))

    async def body(client: EngineClient) -> None:
        assert client.facts["context_tokens"] == 512 and client.facts["vocab_size"] == TOKENIZER.vocab_size
        streams = await asyncio.gather(*(read(client, one) for one in wanted))
        expected = load_engine("stub:").complete(wanted)
        for one, events in zip(wanted, streams, strict=True):
            for completion in (c for c in expected if c.request_id == one.id):
                assert joined(events, one.id, completion.index) == said(completion)
                own = [event for event in events if event.index == completion.index]
                assert tuple(p for event in own for p in event.logprobs) == completion.logprobs
                assert own[0].prompt_logprobs == completion.prompt_logprobs
        assert not client.pending
        await until(lambda: client.counters().get("requests_total") == 7, 2)
        assert client.counters()["slots_in_use"] == 0

    with_client("stub:", body)


def test_a_request_is_refused_before_it_is_sent_and_the_engines_own_refusals_arrive_as_they_are():
    async def body(client: EngineClient) -> None:
        with pytest.raises(RequestError, match="temperature"):
            client.submit(request("r", temperature=-1.0))
        with pytest.raises(RequestError) as caught:
            client.submit(request("r", "x" * 600))
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(RequestError, match="prompt: expected token ids"):
            await read(client, Request("r", (10**6,)))
        running = [asyncio.create_task(read(client, request(f"r{i}", max_tokens=300))) for i in range(2)]
        await until(lambda: len(client.pending) == 2, 2)
        with pytest.raises(RequestError, match="new request id"):
            client.submit(request("r0"))
        with pytest.raises(CapacityError, match="expected room for 1 answers"):
            await read(client, request("late"))
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await until(lambda: client.counters()["slots_in_use"] == 0, 2)
        assert len(await read(client, request("again"))) > 0

    with_client("stub:delay_ms=20", body, n_slots=1, max_waiting=1)


def test_a_reader_that_leaves_frees_its_slot_within_a_second():
    async def body(client: EngineClient) -> None:
        events = client.submit(request("r", max_tokens=2000))
        for _ in range(3):
            await anext(events)
        await events.aclose()
        assert await until(lambda: client.counters().get("cancelled_total") == 1, 1) < 1
        assert client.counters()["slots_in_use"] == 0 and client.counters()["generated_tokens_total"] < 60

    with_client(SLOW, body)


def test_kill_9_under_load_gives_errors_at_once_and_the_engine_comes_back(capfd):
    async def body(client: EngineClient) -> None:
        tasks = [asyncio.create_task(read(client, request(f"r{i}", max_tokens=2000))) for i in range(6)]
        await until(lambda: client.counters().get("generated_tokens_total", 0) > 20, 5)
        generated = client.counters()["generated_tokens_total"]
        first = client.facts["pid"]
        os.kill(first, signal.SIGKILL)
        began = time.monotonic()
        streams = await asyncio.wait_for(asyncio.gather(*tasks), 2)
        assert not client.ready and time.monotonic() - began < 2
        for i, events in enumerate(streams):
            assert joined(events, f"r{i}")[2] == "error" and events[-1].error
        with pytest.raises(CapacityError, match="dead|loading"):
            client.submit(request("too soon"))
        assert client.counters()["slots_in_use"] == 0
        await client.wait_ready(60)
        assert client.facts["pid"] != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)  # reaped
        assert joined(await read(client, request("after")), "after")[2] == "length"
        await until(lambda: client.counters()["requests_total"] == 7, 2)
        assert client.counters()["generated_tokens_total"] >= generated  # totals never go back
        assert client.counters()["engine_restarts_total"] == 1

    with_client(SLOW, body)
    assert "starting it again" in capfd.readouterr().err


def test_a_request_that_kills_the_process_is_not_tried_again():
    async def body(client: EngineClient) -> None:
        events = await read(client, request("r", "deadly !"))
        assert joined(events, "r")[2] == "error"
        await client.wait_ready(60)
        await asyncio.sleep(0.3)
        assert client.ready and client.counters()["engine_restarts_total"] == 1

    with_client("stub:crash=!", body)


def test_a_poisoned_request_fails_alone_and_the_process_lives(capfd):
    async def body(client: EngineClient) -> None:
        good, bad = await asyncio.gather(read(client, request("good")), read(client, request("bad", "poison !")))
        assert joined(good, "good")[2] == "length" and joined(bad, "bad")[2] == "error"
        assert "Traceback" not in (bad[-1].error or "") and "/" not in (bad[-1].error or "")
        await until(lambda: client.counters().get("failed_total") == 1, 2)
        assert client.ready and client.counters()["engine_restarts_total"] == 0

    with_client("stub:poison=!", body)
    assert "poison in the row" in capfd.readouterr().err  # the trace is in the log


def test_draining_takes_no_more_and_finishes_what_runs():
    async def body(client: EngineClient) -> None:
        task = asyncio.create_task(read(client, request("r", max_tokens=30, ignore_eos=True)))
        await until(lambda: client.counters().get("slots_in_use") == 1, 2)
        stopping = asyncio.create_task(client.stop(30))
        await asyncio.sleep(0.05)
        assert client.state == "draining" and not client.ready
        with pytest.raises(CapacityError, match="draining"):
            client.submit(request("late"))
        assert joined(await task, "r")[2] == "length"
        await asyncio.wait_for(stopping, 2)
        assert client.state == "stopped" and client.process is not None and client.process.returncode == 0

    with_client(SLOW, body)


def test_draining_without_patience_aborts_with_an_error_for_every_reader():
    async def body(client: EngineClient) -> None:
        task = asyncio.create_task(read(client, request("r", n=2, max_tokens=2000)))
        await until(lambda: client.counters().get("slots_in_use") == 2, 2)
        began = time.monotonic()
        patient = asyncio.create_task(client.stop(30))
        await asyncio.sleep(0.1)
        await client.stop(0)  # the second signal
        await patient
        assert time.monotonic() - began < 4
        events = await asyncio.wait_for(task, 1)
        assert [joined(events, "r", index)[2] for index in (0, 1)] == ["error", "error"]

    with_client(SLOW, body)


def test_stopping_while_the_model_loads_is_quick():
    async def run() -> None:
        client = EngineClient("stub:load_ms=60000")
        await client.start()
        await until(lambda: client.state == "loading", 5)
        await asyncio.sleep(0.5)
        with pytest.raises(EngineError, match="expected it ready within 0.1 s, got loading"):
            await client.wait_ready(0.1)
        began = time.monotonic()
        await client.stop(30)
        assert time.monotonic() - began < 4
        with pytest.raises(EngineError, match="stopped"):
            await client.wait_ready(1)

    asyncio.run(run())


def test_a_model_that_can_not_be_loaded_is_an_error_with_its_reason_and_no_restart_loop():
    async def run() -> None:
        client = EngineClient("stub:nonsense=1")
        await client.start()
        with pytest.raises(ConfigError, match="stub.nonsense: unknown key"):
            await client.wait_ready(60)
        assert client.state == "failed" and client.counters()["engine_restarts_total"] == 0
        with pytest.raises(CapacityError, match="failed"):
            client.submit(request("r"))
        await client.stop(0)

    asyncio.run(run())


def test_a_process_that_dies_again_and_again_while_it_loads_is_given_up(monkeypatch, capfd):
    def spawn(client: EngineClient, connection: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(9)"])

    monkeypatch.setattr(EngineClient, "spawn", spawn)

    async def run() -> None:
        client = EngineClient("stub:")
        await client.start()
        with pytest.raises(EngineError, match="died 3 times while it loaded"):
            await client.wait_ready(30)
        assert client.state == "failed"
        await client.stop(0)

    asyncio.run(run())
    assert capfd.readouterr().err.count("exit code 9") == 2


def test_sigterm_to_the_process_alone_lets_answers_finish_and_it_comes_back():
    async def body(client: EngineClient) -> None:
        first = client.facts["pid"]
        task = asyncio.create_task(read(client, request("r", max_tokens=30, ignore_eos=True)))
        await until(lambda: client.counters().get("slots_in_use") == 1, 2)
        os.kill(first, signal.SIGTERM)
        await until(lambda: not client.ready, 1)
        assert joined(await task, "r")[2] == "length"
        await client.wait_ready(60)
        assert client.facts["pid"] != first

    with_client(SLOW, body)


def test_sigint_is_the_parents_business():
    async def body(client: EngineClient) -> None:
        os.kill(client.facts["pid"], signal.SIGINT)
        assert joined(await read(client, request("r")), "r")[2] == "length"
        assert client.counters()["engine_restarts_total"] == 0

    with_client("stub:", body)


def test_a_slow_reader_gets_everything_in_few_events():
    async def body(client: EngineClient) -> None:
        events = client.submit(request("r", max_tokens=400, ignore_eos=True))
        got = [await anext(events)]
        await until(lambda: client.counters().get("generated_tokens_total") == 400, 10)
        await asyncio.sleep(0.1)
        got += [event async for event in events]
        assert len(got) < 6
        whole = load_engine("stub:").complete([request("r", max_tokens=400, ignore_eos=True)])[0]
        assert joined(got, "r") == said(whole)

    with_client("stub:", body)


def test_a_reader_too_far_behind_is_given_up(monkeypatch):
    monkeypatch.setattr(pending, "MAX_PENDING_BYTES", 1000)

    async def body(client: EngineClient) -> None:
        events = client.submit(request("r", max_tokens=3000, ignore_eos=True))
        await anext(events)
        await until(lambda: client.counters().get("cancelled_total") == 1, 10)
        rest = [event async for event in events]
        assert rest[-1].finish_reason == "error" and "behind" in (rest[-1].error or "")
        assert client.counters()["slots_in_use"] == 0

    with_client("stub:context_tokens=4096&delay_ms=1", body)


def test_figures_larger_than_the_buffer_reach_a_reader_who_reads(monkeypatch):
    """One event may cost more than a reader may leave unread; and the choices of a frame come together."""
    monkeypatch.setattr(pending, "MAX_PENDING_BYTES", 1000)
    monkeypatch.setattr(line, "TURN_BYTES", 1)  # as there: less than a reader may leave unread
    one = request("r", "x" * 200, prompt_logprobs=True, logprobs=5, n=3, max_tokens=40, ignore_eos=True)

    async def body(client: EngineClient) -> None:
        events = await read(client, one)
        assert [joined(events, "r", index)[2] for index in range(3)] == ["length"] * 3
        assert all(len(event.prompt_logprobs) == 201 for event in events if event.prompt_logprobs)

    with_client("stub:delay_ms=2", body)


def test_a_reader_may_leave_while_the_line_to_the_process_breaks():
    async def body(client: EngineClient) -> None:
        events = client.submit(request("r", max_tokens=2000))
        await anext(events)
        assert client.line is not None
        client.line.transport.abort()
        await asyncio.wait_for(events.aclose(), 1)  # raised that the process is not there
        assert not client.pending

    with_client(SLOW, body)


PARENT = """
import asyncio, sys
from fledge.engine.client import EngineClient
async def main():
    client = EngineClient("stub:delay_ms=5&context_tokens=4096")
    await client.start()
    await client.wait_ready(60)
    print(client.facts["pid"], "torch" in sys.modules, flush=True)
    await asyncio.sleep(100)
asyncio.run(main())
"""


def test_the_process_goes_when_its_parent_is_killed_and_the_parent_never_loads_torch():
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, torch_loaded = parent.stdout.readline().split()
        assert torch_loaded == "False"
        os.kill(int(pid), 0)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 4
        while lives(int(pid)):
            assert time.monotonic() < deadline, "the engine process outlived its parent"
            time.sleep(0.02)
