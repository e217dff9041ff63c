"""Vectors and labels when things go wrong: a full server, a caller who leaves, a dead process, a stop in mid pass."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.sentences import tiny_classifier
from tests.serve.running import RunningServer, error_of, running, wait_until

WORDS = ("engine.threads=1", "max_choices=2", "vectors.max_waiting_tokens=100", "drain_seconds=0.5")
PATH = "/classify"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tiny_classifier(tmp_path_factory.mktemp("classifier") / "mood")
    with running(str(folder), *WORDS) as started:
        yield started


def asked(pool: ThreadPoolExecutor, server: RunningServer, **options: Any) -> Future[httpx.Response]:
    """A request that waits for an engine that was stopped, and holds the one place that a caller has."""
    reply = pool.submit(httpx.post, server.url + PATH, json={"input": "so so"}, trust_env=False, **options)
    # A verb that the model lacks is refused without the engine: 400 while there is a place, 503 then.
    wait_until(lambda: server.post("/v1/embeddings", {"input": "a"}).status_code == 503, 10)
    return reply


def test_one_caller_has_half_of_the_places_and_one_request_a_bounded_size(server) -> None:
    whole = server.post(PATH, {"input": ["so " * 30] * 3})
    assert whole.status_code == 200, whole.text
    large = server.post(PATH, {"input": ["so " * 30] * 4})
    assert large.status_code == 400 and "at most 100 tokens in all inputs, got 128" in error_of(large)["message"]
    server.engine().send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waits = asked(pool, server, timeout=30)
        refused = server.post(PATH, {"input": "a"})
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        server.engine().send_signal(signal.SIGCONT)
        assert waits.result().status_code == 200
    assert server.post(PATH, {"input": "a"}).status_code == 200  # the control: the place is free again


def test_a_caller_who_leaves_is_noticed_and_holds_nothing(server) -> None:
    left = server.metric("fledge_request_disconnects_total")
    server.engine().send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waits = asked(pool, server, timeout=0.5)
        with pytest.raises(httpx.ReadTimeout):
            waits.result()
    wait_until(lambda: server.metric("fledge_request_disconnects_total") == left + 1, 5)
    server.engine().send_signal(signal.SIGCONT)
    assert server.post(PATH, {"input": "a"}).status_code == 200


def test_a_process_that_dies_fails_its_requests_and_comes_back_with_the_same_numbers(server) -> None:
    before = server.post(PATH, {"input": "so so"}).json()["data"]
    engine = server.engine()
    engine.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waits = asked(pool, server, timeout=30)
        engine.kill()
        failed = waits.result()
    assert failed.status_code == 500 and failed.headers["x-should-retry"] == "false"
    assert error_of(failed)["code"] == "internal_error"
    server.wait_ready()
    assert server.post(PATH, {"input": "so so"}).json()["data"] == before
    assert server.metric("fledge_engine_restarts_total") == 1


def test_a_stop_cuts_off_what_has_not_ended_and_leaves_no_process(server) -> None:
    """The last test: the server is gone after it."""
    engine = server.engine()
    engine.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waits = asked(pool, server, timeout=30)
        assert server.stop(20) == 0
        cut_off = waits.result()
    assert (cut_off.status_code, cut_off.json()["error"]["code"]) == (503, "draining")
    assert not engine.is_running()
