"""Which waiting rows share a pass, and what the process of vectors does with them."""

from __future__ import annotations

import base64
import json
import queue
import random
import socket
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fledge.engine import wire
from fledge.engine.row_queue import MOST_ROWS, RowQueue, RowRequest, WaitingRow, padded_tokens
from fledge.engine.vector_config import VectorConfig
from fledge.engine.vector_process import VectorWorker
from fledge.errors import CapacityError, ConfigError


def asked(name: str, lengths: list[int], tenant: str = "", seconds: float = 0.0) -> RowRequest:
    return RowRequest(name, tuple((7,) * length for length in lengths), tenant, seconds)


def test_every_row_is_taken_once_within_the_budget_with_little_padding() -> None:
    random.seed(0)
    lengths = [random.randint(1, 100) for _ in range(400)]
    queue_, found, padded = RowQueue(512, 10**6), Counter(), 0
    for number in range(40):
        queue_.add(asked(f"r{number}", lengths[number * 10 : number * 10 + 10], f"t{number % 3}"))
    assert queue_.n_rows == 400 and queue_.n_tokens == sum(lengths)
    while rows := queue_.take():
        assert padded_tokens(rows) <= 512 and len(rows) <= MOST_ROWS
        padded += padded_tokens(rows)
        found.update((row.request_id, row.number) for row in rows)
    assert len(found) == 400 and set(found.values()) == {1}
    assert (queue_.n_rows, queue_.n_tokens) == (0, 0)
    by_arrival = sum(5 * max(lengths[i : i + 5]) for i in range(0, 400, 5))
    assert padded < 1.15 * sum(lengths) < by_arrival  # the control: passes by arrival pad far more


def test_a_row_longer_than_a_pass_goes_alone() -> None:
    waiting = RowQueue(10, 10**6)
    waiting.add(asked("r", [50, 50, 2]))
    assert [[len(row.ids) for row in waiting.take()] for _ in range(3)] == [[50], [50], [2]]


def test_a_flood_of_one_tenant_is_not_before_anothers_row() -> None:
    waiting = RowQueue(100, 10**6)
    waiting.add(asked("flood", [50] * 1000, "a"))
    waiting.add(asked("one", [3], "b"))
    taken = [row.request_id for _ in range(2) for row in waiting.take()]
    assert "one" in taken and len(taken) <= 4
    alike = RowQueue(100, 10**6)
    alike.add(asked("flood", [50] * 1000, "a"))
    alike.add(asked("one", [3], "a"))  # the control: behind one's own flood one waits
    assert "one" not in [row.request_id for _ in range(2) for row in alike.take()]


def test_too_much_is_refused_and_who_waits_too_long_is_let_go() -> None:
    now = [0.0]
    waiting = RowQueue(10, 100, clock=lambda: now[0])
    waiting.add(asked("first", [10] * 9, seconds=5.0))
    with pytest.raises(CapacityError, match="at most 100 tokens to wait, got 101"):
        waiting.add(asked("second", [11]))
    waiting.add(asked("third", [10], seconds=5.0))
    assert len(waiting.take()) == 1 and waiting.overdue() == []
    now[0] = 5.1
    assert waiting.overdue() == ["third"]  # the first has begun
    assert waiting.n_rows == 8 and waiting.n_tokens == 80
    waiting.cancel("first")
    assert waiting.n_rows == waiting.n_tokens == 0 and waiting.take() == []


class FakeEncoder:
    """A row's numbers are its length and the sum of its ids and kinds, as often as it asks for tokens; 13 fails a pass,
    14 gives what is no number."""

    facts = {"width": 2, "max_tokens": 64, "purpose": "embed", "unit": False}

    def answers(self, rows: list[WaitingRow]) -> list[np.ndarray]:
        if any(13 in row.ids for row in rows):
            raise RuntimeError("thirteen")
        told = [[len(row.ids), float("nan") if 14 in row.ids else sum(row.ids) + sum(row.kinds)] for row in rows]
        return [np.array([one] * max(1, row.top_k), np.float32) for one, row in zip(told, rows, strict=True)]


class Line:
    """A worker and what it sends."""

    def __init__(self, **config: Any) -> None:
        ours, theirs = socket.socketpair()
        self.ours, self.theirs = ours, theirs
        config = VectorConfig(**config)
        self.worker = VectorWorker(FakeEncoder(), config, theirs, queue.SimpleQueue(), [])  # type: ignore[arg-type]

    def submit(self, name: str, rows: list[list[int]], **fields: Any) -> None:
        plain = vars(RowRequest(name, tuple(map(tuple, rows)), **fields))
        self.worker.submit({"kind": "submit", "request": json.loads(json.dumps(plain))})

    def told(self) -> dict[str, Any]:
        """What was sent, by request."""
        self.theirs.close()
        frames = {}
        while (frame := wire.receive(self.ours)) is not None:
            assert frame["id"] not in frames
            frames[frame["id"]] = frame
        self.ours.close()
        return frames


def array(frame: dict[str, Any]) -> list[list[float]]:
    return np.frombuffer(base64.b64decode(frame["data"]), "<f4").reshape(-1, frame["width"]).tolist()


def test_a_row_that_fails_fails_its_own_request_alone() -> None:
    line = Line()
    line.submit("good", [[1, 2, 3], [4], [5, 5]])
    line.submit("raises", [[1, 13], [2]])
    line.submit("nan", [[14]])
    line.submit("gone", [[9]])
    line.submit("kinds", [[1, 2], [7]], kinds=((0, 1), (5,)), top_k=2)
    line.worker.cancel("gone")
    while line.worker.has_work:
        line.worker.work()
    told = line.told()
    assert set(told) == {"good", "raises", "nan", "kinds"}
    assert array(told["kinds"]) == [[2.0, 4.0], [2.0, 4.0], [1.0, 12.0], [1.0, 12.0]]
    assert (told["kinds"]["counts"], told["good"]["counts"]) == ([2, 2], [1, 1, 1])
    assert array(told["good"]) == [[3.0, 6.0], [1.0, 4.0], [2.0, 10.0]]
    assert told["raises"]["kind"] == told["nan"]["kind"] == "refused"
    assert told["raises"]["error"]["class"] == "EngineError" and "thirteen" not in told["raises"]["error"]["message"]
    assert line.worker.unanswered == {} and line.worker.counters()["rows_total"] == 8


def test_a_stop_and_a_full_line_are_told() -> None:
    line = Line(max_waiting_tokens=4)
    line.submit("waits", [[1, 2, 3]])
    line.submit("full", [[1, 2]])
    line.worker.abort()
    told = line.told()
    assert told["full"]["error"]["class"] == "CapacityError" and told["waits"]["error"]["class"] == "EngineError"
    assert not line.worker.has_work
    with pytest.raises(ConfigError, match="vectors.batch_tokens: expected at least 1"):
        VectorConfig(batch_tokens=0)
