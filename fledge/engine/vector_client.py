"""`VectorClient`: the process of vectors and task heads as seen from a server's event loop. Imports no torch."""

from __future__ import annotations

import base64
import dataclasses
import json
import sys

import numpy as np

from fledge.engine import wire
from fledge.engine.client import EngineClient
from fledge.engine.config import EngineConfig
from fledge.engine.pending import PendingEvents
from fledge.engine.row_queue import RowRequest
from fledge.engine.vector_config import VectorConfig
from fledge.errors import CapacityError, EngineError, RequestError


class PendingVectors(PendingEvents):
    """The one answer of a request, between the process and its reader."""

    def __init__(self, request_id: str):
        super().__init__(request_id, 1)
        self.numbers: list[np.ndarray] | None = None

    def fill(self, numbers: list[np.ndarray]) -> None:
        self.numbers = numbers
        self.open_choices.clear()
        self.filled.set()

    async def vectors(self) -> list[np.ndarray]:
        """Raises what `refuse` was given, or EngineError where the process ended."""
        for event in await self.take():
            raise EngineError(event.error or "engine: the answer failed")
        assert self.numbers is not None
        return self.numbers


class VectorClient(EngineClient):
    """As EngineClient, whose states, supervision and figures it has. After `ready`, `facts` are those of an Encoder
    (fledge/engine/encoder.py), with context_tokens, pid and files."""

    def __init__(self, model: str, config: EngineConfig, vectors: VectorConfig):
        super().__init__(model, config)
        self.vectors = vectors

    def words(self) -> list[str]:
        config = {"vectors": dataclasses.asdict(self.vectors), "threads": self.config.threads}
        return [sys.executable, "-m", "fledge.engine.vector_process", self.model, "--config", json.dumps(config)]

    async def numbers(self, request: RowRequest) -> list[np.ndarray]:
        """float32 [n, width] of each row (`Encoder.answers`). Cancelling this cancels the request.

        Raises RequestError (id in use), CapacityError (not ready, too much waits or waited too long), EngineError."""
        if not self.ready:
            raise CapacityError(f"engine: expected it ready, got {self.state}; try again later")
        if request.id in self.pending:
            raise RequestError(f"id: expected a new request id, got {request.id!r:.60}, which is running", "id")
        pending = PendingVectors(request.id)
        self.pending[request.id] = pending
        try:
            self.send({"kind": "submit", "request": vars(request)})
            if self.silent_ticks is None:
                self.silent_ticks = 0
            return await pending.vectors()
        finally:
            self.forget(pending)

    def handle(self, frame: wire.Frame) -> None:
        if frame["kind"] == "vectors":
            pending = self.pending.get(frame["id"])
            if isinstance(pending, PendingVectors):
                found = np.frombuffer(base64.b64decode(frame["data"]), "<f4").reshape(-1, frame["width"])
                pending.fill(np.split(found, np.cumsum(frame["counts"])[:-1]))
        super().handle(frame)
