"""The real engine in played time: a stub whose forward passes take seconds of a clock and none of the machine's, so
that what load does to waiting times is the same in every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from fledge.engine.config import EngineConfig
from fledge.engine.core import Engine
from fledge.engine.request import Request, Sampling
from fledge.engine.row import Row
from fledge.engine.stub import StubRunner
from fledge.errors import FledgeError
from fledge.serve.limits import Admission, Pace
from fledge.text.tokenizer import byte_level

TOKENIZER = byte_level()
STEP, TOKEN = 0.005, 0.0002  # seconds of a forward pass, and of each prompt token in it


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Timed(StubRunner):
    """A pass takes STEP, and TOKEN for each token of a prompt."""

    def __init__(self, clock: Clock, n_slots: int, context_tokens: int):
        super().__init__(TOKENIZER.vocab_size, n_slots, context_tokens)
        self.clock = clock
        self.logits = np.zeros((1, self.vocab_size), np.float32)
        self.logits[0, 97] = 1.0  # the time is what counts, not the text

    def forward(self, rows: list[Row]) -> list[np.ndarray]:
        self.clock.now += STEP + TOKEN * sum(len(row.ids) - 1 for row in rows)
        return [self.logits] * len(rows)


@dataclass
class Told:
    """What became of one request: `refused` with Retry-After's seconds, or when its tokens came."""

    at: float
    refused: int | None = None
    times: list[float] = field(default_factory=list)
    n_tokens: int = 0
    finish: str | None = None

    @property
    def first(self) -> float:
        return self.times[0] - self.at

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]

    @property
    def answered(self) -> bool:
        return self.finish == "length"


class Played:
    """An engine of `n_slots` behind the server's admission, and a clock."""

    def __init__(
        self, n_slots: int = 8, queue_seconds: float = 0.0, max_choices: int = 10**6, prefill_chunk: int = 512
    ):
        self.clock = Clock()
        config = EngineConfig(n_slots=n_slots, prefill_chunk=prefill_chunk, max_waiting=10**6)
        self.engine = Engine(Timed(self.clock, n_slots, 1024), TOKENIZER, config, clock=self.clock)
        self.admission = Admission(max_choices, queue_seconds, n_slots)
        self.admission.pace = Pace(n_slots, self.clock)
        self.queue_seconds = queue_seconds
        self.places: dict[str, Callable[[], None]] = {}

    def ask(self, name: str, prompt_tokens: int, max_tokens: int, tenant: str = "") -> Request:
        number = hash_of(name)
        ids = tuple(97 + (number >> place % 40) % 26 for place in range(prompt_tokens))
        sampling = Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        return Request(name, ids, sampling, tenant, queue_seconds=self.queue_seconds or None)

    def play(self, arrivals: Sequence[tuple[float, Request]], until: float = float("inf")) -> dict[str, Told]:
        """Let requests come at their times and run all to the end, or to a time of the clock."""
        told: dict[str, Told] = {}
        todo = sorted(arrivals, key=lambda one: one[0])[::-1]
        while (todo or self.engine.has_work) and self.clock.now < until:
            if todo and not self.engine.has_work:
                self.clock.now = max(self.clock.now, todo[-1][0])
            while todo and todo[-1][0] <= self.clock.now:
                at, request = todo.pop()
                told[request.id] = self.come(at, request)
            for event in self.engine.step():
                one = told[event.request_id]
                one.n_tokens += len(event.token_ids)
                if event.token_ids:
                    one.times.append(self.clock.now)
                if event.finish_reason:
                    one.finish = event.finish_reason
                    self.places.pop(event.request_id)()
        return told

    def come(self, at: float, request: Request) -> Told:
        """As the server does it: a place for the request, or a refusal."""
        room, pace, told = self.admission.room_for(1, request.tenant), self.admission.pace, Told(at)
        try:
            room.__enter__()
        except FledgeError as error:
            told.refused = int(error.headers["retry-after"])  # type: ignore[attr-defined]
            return told
        pace.enter(request.tenant, 1)
        self.engine.submit(request)

        def leave() -> None:
            pace.leave(request.tenant, 1, 1 if told.n_tokens else 0)
            room.__exit__(None, None, None)

        self.places[request.id] = leave
        return told


def hash_of(name: str) -> int:
    """A number that no other name of the tests shares."""
    return int.from_bytes(name.encode()[-6:].rjust(6, b"\0"), "big") * 0x9E3779B97F4A7C15 % 2**61
