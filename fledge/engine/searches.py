"""`Searches`: the beam searches of an engine, beside its other answers. Imports no torch.

A search waits in the line like an answer of as many choices as it has beams: it is let in when so many slots and all of
its blocks are free beside what the running answers may grow by; less important answers, and equal ones that came later,
wait meanwhile. Then it owns them to its end, and takes one pass for every step of the others, in rows of its own: their
tokens are what they would be without it. One search runs at a time; among equals tenants take turns.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fledge.engine.beam import Places, Search, needed_blocks, text_of
from fledge.engine.request import MAX_BEAMS, BeamSearch, Event, FinishReason, Request, check
from fledge.engine.source import named
from fledge.errors import PeerError, RankError

if TYPE_CHECKING:
    from fledge.engine.row import Source
    from fledge.engine.scheduler import Scheduler
    from fledge.text.tokenizer import Tokenizer

TOO_FEW = "n: expected at most {}, all the answers that the search found, got {}; ask for fewer"


@dataclass
class Asked:
    """A request for a search. `arrival` counts requests as they came; `work` is there while it runs."""

    request: Request
    search: BeamSearch
    arrival: int
    n_blocks: int
    stop_ids: frozenset[int]
    blocks: tuple[int, ...] = ()
    slots: tuple[int, ...] = ()
    source: Source | None = None
    work: Search | None = None


class Searches:
    """Of one scheduler's places. `chunk_tokens` of a prompt are read in a step."""

    def __init__(self, scheduler: Scheduler, tokenizer: Tokenizer, vocab_size: int, chunk_tokens: int):
        self.scheduler, self.runner = scheduler, scheduler.readers.runner
        self.tokenizer, self.vocab_size, self.chunk_tokens = tokenizer, vocab_size, chunk_tokens
        self.waiting: list[Asked] = []  # in the order in which they came
        self.running: Asked | None = None
        self.turns: dict[str, int] = {}  # of tenants that wait: the higher, the later one of theirs was let in

    def __contains__(self, request_id: str) -> bool:
        return any(one.request.id == request_id for one in self.all)

    @property
    def all(self) -> list[Asked]:
        return [*([self.running] if self.running else []), *self.waiting]

    @property
    def n_waiting(self) -> int:
        """Beams that wait."""
        return sum(one.search.n_beams for one in self.waiting)

    @property
    def n_running(self) -> int:
        return self.running.search.n_beams if self.running else 0

    def add(self, request: Request, search: BeamSearch, arrival: int, model_stops: frozenset[int]) -> None:
        """Let a search wait. Raises RequestError where the runner has no room for it at all, or there are fewer answers
        than it is to tell."""
        most = search.n_groups * self.vocab_size ** min(search.max_tokens, MAX_BEAMS)
        known = f"at most {most}, all the answers of {search.max_tokens} tokens over {self.vocab_size} ids"
        check(request.sampling.n <= most, "n", known, request.sampling.n)
        need = needed_blocks(self.runner, len(request.prompt_ids) + search.max_tokens, search.n_beams)
        stops = frozenset() if request.sampling.ignore_eos else model_stops
        stops |= frozenset(request.sampling.stop_token_ids)
        self.waiting.append(Asked(request, search, arrival, need, stops))

    def first(self) -> Asked | None:
        """Whose turn it is among those that wait."""

        def place(one: Asked) -> tuple[int, int, int]:
            return -one.request.priority, self.turns.get(one.request.tenant, -1), one.arrival

        return min(self.waiting, key=place, default=None)

    def goes_before(self, arrival: int, priority: int) -> bool:
        """Whether a search that waits for places goes before an answer."""
        first = None if self.running else self.first()
        return first is not None and (-first.request.priority, first.arrival) < (-priority, arrival)

    def seat(self) -> Request | None:
        """Let the next search in if there is room; its request if it was."""
        asked = None if self.running else self.first()
        scheduler = self.scheduler
        if asked is None or len(scheduler.free_slots) < asked.search.n_beams:
            return None
        if scheduler.pool.n_available < asked.n_blocks + len(scheduler.running):
            return None
        if scheduler.waiting:
            other = scheduler.waiting.first()
            if not self.goes_before(other.arrival, other.request.priority):
                return None
        request = asked.request
        blocks: list[int] = []
        for number in range(asked.n_blocks):
            blocks.append(scheduler.pool.take(blocks[-1] if blocks else None, asked.n_blocks - number))
        asked.blocks = tuple(blocks)
        asked.slots = tuple(heapq.heappop(scheduler.free_slots) for _ in range(asked.search.n_beams))
        asked.source = named(request.source_ids, request.tenant, scheduler.version, request.adapter)
        if asked.source is not None:
            scheduler.readers.add(asked.source)
        places = Places(self.runner, asked.blocks, asked.slots, asked.source, request.adapter)
        asked.work = Search(
            places, request.prompt_ids, asked.search, asked.stop_ids, self.vocab_size, self.chunk_tokens
        )
        self.waiting.remove(asked)
        self.running = asked
        waits = {one.request.tenant for one in self.waiting}
        self.turns = {tenant: turn for tenant, turn in self.turns.items() if tenant in waits}
        self.turns[request.tenant] = 1 + max(self.turns.values(), default=-1)
        return request

    def step(self, fail: Callable[[str, Exception], list[Event]]) -> list[Event]:
        """One pass of the search that runs: its answers when it is over. `fail` ends a request that raised."""
        asked = self.running
        if asked is None:
            return []
        assert asked.work is not None
        try:
            if not asked.work.step():
                return []
            return self.told(asked, asked.work)
        except (RankError, PeerError):
            raise  # no pass can be computed any more
        except Exception as error:
            return fail(asked.request.id, error)

    def told(self, asked: Asked, work: Search) -> list[Event]:
        """The best answers of a search that is over, best first; an error for each that there is none for."""
        request, found = asked.request, work.answers()[: asked.request.sampling.n]
        events = []
        for index, one in enumerate(found):
            text, reason = text_of(self.tokenizer, request.prompt_ids, one.token_ids, asked.stop_ids)
            events.append(Event(request.id, index, one.token_ids, text, finish_reason=reason, score=one.score))
        return events + ended(request, "error", TOO_FEW.format(len(found), request.sampling.n))[len(found) :]

    def leave(self, request_id: str) -> Request | None:
        """Take a search from wherever it stands; what it held is free. Its request, if there is one."""
        asked = next((one for one in self.all if one.request.id == request_id), None)
        if asked is None:
            return None
        if asked is self.running:
            self.running = None
            for slot in asked.slots:
                heapq.heappush(self.scheduler.free_slots, slot)
            self.scheduler.release(list(asked.blocks))
            if asked.source is not None:
                self.scheduler.readers.remove(asked.source)
        else:
            self.waiting.remove(asked)
        return asked.request


def ended(request: Request, finish_reason: FinishReason, error: str | None) -> list[Event]:
    """The last events of a search that was cut off from outside."""
    return [Event(request.id, index, finish_reason=finish_reason, error=error) for index in range(request.sampling.n)]
