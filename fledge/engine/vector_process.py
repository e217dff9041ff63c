"""The process of vectors and task heads: `python -m fledge.engine.vector_process MODEL --fd N …`, as
fledge/engine/process.py in all but what it works on.

A request brings rows of token ids, and is answered once, when all of its rows went through a pass.
"""

from __future__ import annotations

import base64
import os
import socket
import sys
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fledge.engine import wire
from fledge.engine.loop import Commands, Loop
from fledge.engine.process import main
from fledge.engine.row_queue import RowQueue, RowRequest, WaitingRow, padded_tokens
from fledge.engine.vector_config import VectorConfig
from fledge.errors import CapacityError, CheckpointError, EngineError, FledgeError

if TYPE_CHECKING:
    from fledge.engine.encoder import Encoder


def begin_vectors(
    model: str, config: dict[str, Any], connection: socket.socket, commands: Commands[wire.Frame]
) -> Loop:
    """The loop around an encoder. Raises what loading raises, and CheckpointError if the files changed meanwhile."""
    from fledge.engine.encoder import load_encoder, vector_files

    def files() -> list[list[str | int]]:
        return [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in vector_files(model)]

    before, options = files(), VectorConfig(**config["vectors"])
    encoder = load_encoder(model, options.pooling, config["threads"])
    if files() != before:
        raise CheckpointError(f"{model}: expected files that stay, got others while they were read; load it again")
    return VectorWorker(encoder, options, connection, commands, before)


@dataclass
class Unanswered:
    """A request of which some rows wait, or are in a pass."""

    numbers: list[np.ndarray | None]  # of each row, once it went through a pass
    left: int


class VectorWorker(Loop):
    """The loop around an encoder: each step is one pass over the rows that the queue puts together."""

    def __init__(
        self,
        encoder: Encoder,
        config: VectorConfig,
        connection: socket.socket,
        commands: Commands[wire.Frame],
        files: list[list[str | int]],
    ):
        super().__init__(connection, commands)
        self.encoder, self.config, self.files = encoder, config, files
        self.queue = RowQueue(config.batch_tokens, config.max_waiting_tokens)
        self.unanswered: dict[str, Unanswered] = {}
        self.totals = dict.fromkeys(("passes_total", "rows_total", "row_tokens_total", "padded_tokens_total"), 0)

    def facts(self) -> dict[str, Any]:
        facts = self.encoder.facts
        return {**facts, "context_tokens": facts["max_tokens"], "pid": os.getpid(), "files": self.files}

    @property
    def has_work(self) -> bool:
        return self.queue.n_rows > 0

    def counters(self) -> dict[str, float]:
        return {"waiting": self.queue.n_rows, "waiting_tokens": self.queue.n_tokens, **self.totals}

    def submit(self, frame: wire.Frame) -> None:
        plain = frame["request"]
        try:
            if self.deadline is not None:
                raise CapacityError("engine: shutting down; try again later")
            request = RowRequest.from_plain(plain)
            self.queue.add(request)
        except FledgeError as error:
            self.refuse(plain["id"], error)
            return
        self.unanswered[request.id] = Unanswered([None] * len(request.rows), len(request.rows))

    def cancel(self, request_id: str) -> None:
        self.unanswered.pop(request_id, None)
        self.queue.cancel(request_id)

    def work(self) -> None:
        """One pass; what was asked whole by it is answered. Rows that the model fails on fail their own request."""
        for request_id in self.queue.overdue():
            self.give_up(request_id, CapacityError("engine: no pass came within the time one may wait"))
        rows = self.queue.take()
        if not rows:
            return
        self.totals["passes_total"] += 1
        self.totals["rows_total"] += len(rows)
        self.totals["row_tokens_total"] += sum(len(row.ids) for row in rows)
        self.totals["padded_tokens_total"] += padded_tokens(rows)
        for row, numbers in self.passed(rows):
            request = self.unanswered.get(row.request_id)
            if request is None:  # given up meanwhile
                continue
            request.numbers[row.number] = numbers
            request.left -= 1
            if not request.left:
                self.answer(row.request_id, [one for one in request.numbers if one is not None])

    def passed(self, rows: list[WaitingRow]) -> list[tuple[WaitingRow, np.ndarray]]:
        """The rows with their numbers; where a pass fails, each by itself, so that one bad row fails alone."""
        try:
            found = self.encoder.answers(rows)
            if not all(np.isfinite(one).all() for one in found):
                raise EngineError("engine: the model gave numbers that are not finite")
            return list(zip(rows, found, strict=True))
        except Exception as error:
            if len(rows) > 1:
                return [one for row in rows for one in self.passed([row])]
            if not isinstance(error, FledgeError):
                traceback.print_exception(error)
            self.give_up(rows[0].request_id, EngineError(f"engine: the pass failed ({type(error).__name__})"))
            return []

    def answer(self, request_id: str, numbers: list[np.ndarray]) -> None:
        del self.unanswered[request_id]
        data = base64.b64encode(np.concatenate(numbers).astype("<f4").tobytes()).decode()
        shapes = {"counts": list(map(len, numbers)), "width": numbers[0].shape[1]}
        try:
            self.send({"kind": "vectors", "id": request_id, **shapes, "data": data})
        except EngineError as error:  # larger than a frame
            self.refuse(request_id, error)

    def give_up(self, request_id: str, error: FledgeError) -> None:
        """Refuse a request that was taken, once."""
        if self.unanswered.pop(request_id, None) is not None:
            self.queue.cancel(request_id)
            self.refuse(request_id, error)

    def abort(self) -> None:
        for request_id in list(self.unanswered):
            self.give_up(request_id, EngineError("engine: shut down before the answer was finished"))


if __name__ == "__main__":
    sys.exit(main(begin_vectors))
