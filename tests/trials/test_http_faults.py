"""Trials 58, 61 (basics), 64, 65 and 67: callers who leave, a full server, readiness, a dead engine, poison."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil
import pytest

from tests.serve.raw import connect, request
from tests.serve.running import CHAT, RunningServer, error_of, frames_of, running, wait_until

CHAT_PATH = "/v1/chat/completions"
LONG = {**CHAT, "stream": True, "ignore_eos": True, "seed": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """20 ms a token, two slots, room for twelve answers, six of one caller."""
    words = ("engine.n_slots=2", "max_choices=12", "engine.max_waiting=10")
    with running("stub:delay_ms=20&poison=%07&crash=%08&context_tokens=400", *words) as started:
        yield started


def idle(server: RunningServer) -> bool:
    names = ("fledge_num_requests_running", "fledge_num_requests_waiting", "fledge_engine_slots_in_use",
             "fledge_engine_blocks_used")  # fmt: skip
    return all(server.metric(name) == 0 for name in names)


def test_58_a_caller_who_leaves_a_stream_stops_the_engine(server: RunningServer) -> None:
    gone = server.metric("fledge_request_disconnects_total")
    before = server.metric("fledge_generation_tokens_total")
    with server.client.stream("POST", CHAT_PATH, json=LONG) as response:
        frames = frames_of(response)
        for _ in range(3):
            next(frames)
        wait_until(
            lambda: not idle(server), 1
        )  # the control: it ran (the engine tells its figures four times a second)
        began = time.monotonic()
    wait_until(lambda: idle(server), 1)
    assert time.monotonic() - began < 1
    wait_until(lambda: server.metric("fledge_request_disconnects_total") == gone + 1, 1)
    charged = server.metric("fledge_generation_tokens_total") - before
    made = server.metric("fledge_engine_generated_tokens_total")
    assert 2 <= charged < 50
    time.sleep(0.3)
    assert server.metric("fledge_engine_generated_tokens_total") == made


@pytest.mark.parametrize("n", [1, 3])
def test_58_a_caller_who_leaves_a_whole_answer_stops_the_engine(server: RunningServer, n: int) -> None:
    with connect(server.url) as line:
        line.sendall(request(CHAT_PATH, "POST", {**LONG, "stream": False, "n": n}))
        wait_until(lambda: not idle(server), 2)
    assert wait_until(lambda: idle(server), 1) < 1


def test_58_a_caller_who_leaves_the_line_is_taken_out_of_it(server: RunningServer) -> None:
    with connect(server.url) as first, connect(server.url) as second:
        first.sendall(request(CHAT_PATH, "POST", {**LONG, "n": 2}))
        wait_until(lambda: server.metric("fledge_num_requests_running") == 2, 2)
        second.sendall(request(CHAT_PATH, "POST", LONG))
        wait_until(lambda: server.metric("fledge_num_requests_waiting") == 1, 2)
        second.close()
        wait_until(lambda: server.metric("fledge_num_requests_waiting") == 0, 1)
        assert server.metric("fledge_num_requests_running") == 2
    wait_until(lambda: idle(server), 1)


BIG = json.dumps({"messages": [{"role": "user", "content": "x " * (3 << 20)}]}).encode()  # seconds to encode


@contextmanager
def elsewhere(server: RunningServer) -> Iterator[RunningServer]:
    """The same server, asked from another address."""
    other = RunningServer(server.process, server.url, server.error_file)
    transport = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False, transport=transport) as other.client:
        yield other


def refused_at_once(server: RunningServer) -> str:
    """The message of a refusal, whose cost does not depend on what was sent."""
    times = []
    for body in (json.dumps(CHAT).encode(), BIG, json.dumps(LONG).encode(), BIG):
        began = time.perf_counter()
        response = server.client.post(CHAT_PATH, content=body, headers={"content-type": "application/json"})
        times.append(time.perf_counter() - began)
        assert response.status_code == 503
        assert error_of(response)["code"] == "overloaded"
        assert int(response.headers["retry-after"]) >= 1
        assert response.headers["connection"] == "close"
    assert min(times[0], times[2]) < 0.1 and min(times[1], times[3]) < 0.1
    return str(error_of(response)["message"])


def test_61_a_full_server_answers_503_at_once_and_says_when_to_come_back(server: RunningServer) -> None:
    with ThreadPoolExecutor(8) as pool, elsewhere(server) as other:
        busy = [pool.submit(server.chat, max_tokens=100, ignore_eos=True, n=3, seed=1) for _ in range(2)]
        wait_until(lambda: server.metric("fledge_num_requests_waiting") == 4, 5)
        assert "One caller may have 6 answers" in refused_at_once(server)
        assert other.chat(n=7).status_code == 400  # nobody will ever have room for it
        busy += [pool.submit(other.chat, max_tokens=40, ignore_eos=True, n=3, seed=1) for _ in range(2)]
        wait_until(lambda: server.metric("fledge_num_requests_waiting") >= 8, 5)
        assert "The server is full" in refused_at_once(server) and "full" in refused_at_once(other)
        assert [answer.result().status_code for answer in busy] == [200] * 4
    assert server.chat(max_tokens=1).status_code == 200


def test_61_one_callers_flood_does_not_hold_up_anothers_request(server: RunningServer) -> None:
    with ThreadPoolExecutor(8) as pool, elsewhere(server) as other:
        flood = [pool.submit(server.chat, max_tokens=50, ignore_eos=True, seed=1) for _ in range(6)]
        wait_until(lambda: server.metric("fledge_num_requests_waiting") == 4, 5)
        assert other.chat(max_tokens=2, seed=1).status_code == 200  # the next slot is this caller's
        assert sum(answer.done() for answer in flood) <= 3
        assert [answer.result().status_code for answer in flood] == [200] * 6


def test_61_requests_at_once_are_all_served(server: RunningServer) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: server.chat(max_tokens=5, seed=seed), range(6)))
    alone = [server.chat(max_tokens=5, seed=seed) for seed in range(6)]
    texts = [[one.json()["choices"][0]["message"]["content"] for one in some] for some in (answers, alone)]
    assert texts[0] == texts[1]


def test_64_health_and_readiness_are_two_things() -> None:
    with running("stub:load_ms=1200", ready=False) as server:
        assert server.client.get("/health").status_code == 200
        waiting = server.client.get("/ready")
        assert waiting.status_code == 503
        assert error_of(waiting)["code"] == "not_ready"
        assert int(waiting.headers["retry-after"]) >= 1
        assert server.chat(max_tokens=1).status_code == 200  # came too early, and waited for the model
        assert server.client.get("/ready").json() == {"status": "ready"}
        engine = server.engine()
        engine.send_signal(signal.SIGSTOP)  # so that it can't be back before we look
        engine.kill()
        assert wait_until(lambda: server.client.get("/ready").status_code == 503, 2) < 2
        assert server.client.get("/health").status_code == 200
        server.wait_ready()
        with server.client.stream(
            "POST",
            CHAT_PATH,
            json={
                **CHAT,
                "stream": True,
                "max_tokens": 400,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": "a"}],
            },
        ) as response:
            next(response.iter_lines())
            server.process.send_signal(signal.SIGTERM)
            with httpx.Client(base_url=server.url, trust_env=False) as other:

                def refused() -> bool:
                    try:
                        return other.get("/ready").status_code == 503 and other.get("/health").status_code == 200
                    except httpx.TransportError:  # all the same, if it is because the server has ended
                        return server.process.wait(5) == 0

                wait_until(refused, 1)
        assert server.process.wait(10) == 0


def test_64_a_caller_who_leaves_while_the_model_loads_is_noticed() -> None:
    with running("stub:load_ms=60000", "max_choices=2", ready=False) as server:
        for number in (1, 2):  # the second has a place because the first one's was given back
            with connect(server.url) as line:
                line.sendall(request(CHAT_PATH, "POST", CHAT))
                time.sleep(0.3)
                assert server.chat().status_code == 503  # the control: a place is held for it
            wait_until(lambda number=number: server.metric("fledge_request_disconnects_total") == number, 1)


def test_64_a_model_that_cant_be_loaded_ends_the_server_with_an_error(tmp_path: object) -> None:
    with pytest.raises(AssertionError, match=r"error: .*expected a model folder"), running(f"{tmp_path}"):
        pass


def test_65_a_killed_engine_fails_its_requests_and_comes_back(server: RunningServer) -> None:
    failures: list[float] = []
    began_streams: list[int] = []
    killed = threading.Event()

    def ask(stream: bool) -> None:
        body = {**LONG, "stream": stream}
        with httpx.stream("POST", server.url + CHAT_PATH, json=body, trust_env=False, timeout=20) as response:
            if response.status_code == 200:
                frames = list(frames_of(response))
                assert "[DONE]" not in frames
                answer = json.loads(frames[-1])
                began_streams.append(len(frames))
            else:
                assert response.status_code == 500
                answer = json.loads(response.read())
        assert answer["error"]["type"] == "server_error"
        assert killed.is_set()
        failures.append(time.monotonic())

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, stream) for stream in (True, False, True, True)]
        wait_until(lambda: server.metric("fledge_num_requests_running") == 2, 3)
        time.sleep(0.2)
        old = server.engine()
        killed.set()
        old.kill()
        began = time.monotonic()
        wait_until(lambda: server.client.get("/ready").status_code == 503, 2)
        refused = server.chat()
        assert refused.status_code in (200, 503)  # 200: it was back in time
        for one in asked:
            one.result(5)
    assert len(failures) == 4
    assert began_streams and min(began_streams) > 2
    assert max(failures) - began < 2
    server.wait_ready()
    assert server.engine().pid != old.pid
    assert server.chat(max_tokens=2).status_code == 200
    assert server.metric("fledge_engine_restarts_total") >= 1
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []
    assert len(children) == 1


def test_65_a_request_that_kills_the_engine_does_not_kill_the_server(server: RunningServer) -> None:
    assert server.chat(messages=[{"role": "user", "content": "\x08"}]).status_code == 500
    server.wait_ready()
    assert server.chat(max_tokens=2).status_code == 200


def test_67_poison_fails_alone(server: RunningServer) -> None:
    with ThreadPoolExecutor(2) as pool:
        mate = pool.submit(server.chat, max_tokens=30, seed=9)
        wait_until(lambda: server.metric("fledge_num_requests_running") == 1, 2)
        for _ in range(3):
            assert server.chat(messages=[{"role": "user", "content": "\x07"}]).status_code == 500
        assert mate.result().status_code == 200
    assert mate.result().json() == {**server.chat(max_tokens=30, seed=9).json(), **unlike(mate.result())}


def unlike(response: httpx.Response) -> dict[str, object]:
    return {name: response.json()[name] for name in ("id", "created")}
