"""`Scheduler`: who runs, who waits, and who holds which blocks of the cache. Imports no torch.

An answer is let in when its blocks are there, not when a whole context is. When blocks run out, the least important and
among equals the youngest answer gives its blocks back and waits; its tokens so far are computed again later, and it
goes on with the same ones (Kwon et al. 2023, arXiv 2309.06180, recompute).
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable

from fledge.engine.blocks import BlockPool
from fledge.engine.choice import Choice
from fledge.engine.config import EngineConfig
from fledge.engine.prefix import root_key
from fledge.engine.row import RunnerFace, Source
from fledge.engine.source import Readers, named
from fledge.engine.waiting import WaitingLine

TOTALS = ("preemptions", "prefix_hits", "prefix_hit_tokens", "prefix_query_tokens")


class Scheduler:
    """Places of one runner: `n_slots` numbers, and the blocks of its cache.

    `version` is of the weights: what was computed with others is not shared.
    """

    def __init__(self, runner: RunnerFace, config: EngineConfig):
        self.n_slots, self.window = runner.n_slots, runner.window
        self.block_tokens, self.chunk_tokens = runner.block_tokens, config.prefill_chunk
        self.shares = config.prefix_cache and runner.shares
        self.pool = BlockPool(runner.n_blocks)
        self.version = ""
        self.readers = Readers(runner)
        self.free_slots = list(range(runner.n_slots))
        self.waiting = WaitingLine()
        self.followers: dict[str, list[Choice]] = {}  # request id -> answers that wait for the first one's prompt
        self.prefilling: deque[Choice] = deque()
        self.decoding: list[Choice] = []
        self.totals = dict.fromkeys(TOTALS, 0)

    @property
    def running(self) -> list[Choice]:
        return [*self.prefilling, *self.decoding]

    @property
    def n_waiting(self) -> int:
        return len(self.waiting) + sum(map(len, self.followers.values()))

    def most_blocks(self, n_tokens: int) -> int:
        """Blocks that an answer of so many tokens holds at once at most."""
        if self.window is not None:
            n_tokens = min(n_tokens, self.window + self.chunk_tokens + self.block_tokens)
        return self.blocks_of(n_tokens)

    def blocks_of(self, n_tokens: int) -> int:
        return -(-n_tokens // self.block_tokens)

    def queue(self, choices: list[Choice]) -> None:
        """Put a new request's answers in the line; if they can share their prompt's blocks, the first goes ahead."""
        first, *others = choices
        self.waiting.push(first)
        if others and self.shares and not first.measures_prompt and len(first.request.prompt_ids) > self.block_tokens:
            self.followers[first.request.id] = others
            return
        for choice in others:
            self.waiting.push(choice)

    def admit(self, held_back: Callable[[int, int], bool] = lambda arrival, priority: False) -> None:
        """Let in who can be, in the order of the line: a small answer never passes a large one that lacks blocks.
        Less important ones that run give way, and so do those of a tenant that has more than its share of the slots.
        `held_back`: whether an answer, by its arrival and priority, waits for somebody else."""
        while self.waiting:
            choice = self.waiting.first()
            if held_back(choice.arrival, choice.request.priority):
                return
            if self.seat(choice):
                self.waiting.pop()
                continue
            below = [one for one in self.running if one.request.priority < choice.request.priority]
            if below:
                self.preempt(max(below, key=rank))
            elif not self.even_out():
                return

    def even_out(self) -> bool:
        """When slots are short: give the tenant that has the fewest the place of the youngest answer of the one that
        has the most, if that is two more at least. Gives whether it did. What the other one lost is still in the
        cache, so it costs little; where blocks can't be found again nobody gives way."""
        if self.free_slots or not self.shares:
            return False
        held = Counter(choice.request.tenant for choice in self.running)
        choice = min(self.waiting.firsts(), key=lambda one: held[one.request.tenant])
        richer = [one for one in self.decoding if held[one.request.tenant] > held[choice.request.tenant] + 1]
        richer = [one for one in richer if one.request.priority == choice.request.priority]
        if not richer:
            return False
        giver = max(richer, key=lambda one: (held[one.request.tenant], rank(one)))
        known = self.known_blocks(choice)
        given = sum(block >= 0 and self.pool.holders[block] == 1 for block in giver.blocks)
        if self.lacking(choice, known, len(self.running) - 1) > given:
            return False
        self.preempt(giver)
        seated = self.seat(choice)
        assert seated
        self.waiting.take(choice)
        return True

    def seat(self, choice: Choice) -> bool:
        """Give a waiting choice a slot and the blocks for what it has to read, if they are there and every running one
        can grow by a block too."""
        if not self.free_slots:
            return False
        known = self.known_blocks(choice)
        if self.lacking(choice, known, len(self.running)) > 0:
            return False
        n_known, end = len(known) * self.block_tokens, self.first_end(choice, known)
        for block in known:
            self.pool.hold(block)
        choice.slot, choice.blocks, choice.n_cached = heapq.heappop(self.free_slots), known, n_known
        choice.n_known = len(known)
        choice.source = self.source_of(choice)
        if choice.source is not None:
            choice.n_unread = len(choice.source.ids) if self.readers.add(choice.source) else 0
        self.drop_unseen(choice)
        self.grow(choice, end)
        if self.shares and not choice.measures_prompt:
            self.totals["prefix_query_tokens"] += choice.n_tokens
            self.totals["prefix_hits"] += n_known > 0
            self.totals["prefix_hit_tokens"] += n_known
        (self.decoding if choice.decodes else self.prefilling).append(choice)
        return True

    def first_end(self, choice: Choice, known: list[int]) -> int:
        """Up to which of its tokens a waiting choice gets blocks with its slot, when it has `known` ones."""
        n_known = len(known) * self.block_tokens
        return choice.n_tokens if self.window is None else choice.next_end(self.chunk_tokens, n_known)

    def lacking(self, choice: Choice, known: list[int], n_running: int) -> int:
        """Blocks that are not there for a waiting choice to come in beside `n_running` others, which can grow by a
        block each; 0 or less: it can."""
        n_unseen = self.n_unseen(len(known) * self.block_tokens)  # given back at once
        n_idle = sum(not self.pool.holders[block] for block in known[n_unseen:])
        wanted = self.blocks_of(self.first_end(choice, known)) - len(known) + n_running
        return wanted - (self.pool.n_available - n_idle)

    def known_blocks(self, choice: Choice) -> list[int]:
        """The blocks that hold the beginning of its tokens already; the last token is always computed."""
        known: list[int] = []
        if not self.shares or choice.measures_prompt:
            return known
        root = self.root(choice)
        for number in range((choice.n_tokens - 1) // self.block_tokens):
            block = self.pool.index.find(choice.content(number, root, self.block_tokens))
            if block is None:
                break
            known.append(block)
        return known

    def root(self, choice: Choice) -> bytes:
        """The key before its first block, of all that its keys and values depend on beside its tokens: an answer to
        another source shares none of its blocks."""
        source = self.source_of(choice)
        return root_key(*self.facts(choice)) if source is None else source.name

    def source_of(self, choice: Choice) -> Source | None:
        """What it reads besides, by the name that it has under these weights, whether it runs or waits."""
        return choice.source or named(choice.request.source_ids, *self.facts(choice))

    def facts(self, choice: Choice) -> tuple[str, str, str]:
        return choice.request.tenant, self.version, choice.request.adapter

    def grow(self, choice: Choice, n_tokens: int) -> None:
        """Take blocks until the first `n_tokens` tokens have theirs; they must be available."""
        most = self.blocks_of(choice.most_tokens)
        while len(choice.blocks) < self.blocks_of(n_tokens):
            after = choice.blocks[-1] if choice.blocks and choice.blocks[-1] >= 0 else None
            choice.blocks.append(self.pool.take(after, most - len(choice.blocks)))

    def with_room(self, choices: list[Choice]) -> list[Choice]:
        """Those of `choices` that have blocks for their next tokens, in their order. For these others may have had to
        give theirs back, among `choices` too."""
        short = [choice for choice in choices if self.missing(choice) > 0]
        for choice in sorted(short, key=rank):
            if choice.draft and self.missing(choice) > self.pool.n_available:
                choice.draft = []  # nobody gives way for guesses
            while choice.slot is not None and self.missing(choice) > self.pool.n_available:
                self.preempt(max(self.running, key=rank))
            if choice.slot is not None:
                self.grow(choice, choice.next_end(self.chunk_tokens, choice.n_cached))
        return [choice for choice in choices if choice.slot is not None] if short else choices

    def missing(self, choice: Choice) -> int:
        """Blocks that a running choice lacks for its next tokens."""
        return self.blocks_of(choice.next_end(self.chunk_tokens, choice.n_cached)) - len(choice.blocks)

    def preempt(self, choice: Choice) -> None:
        """Take a running choice's blocks and slot; it waits at the front of its tenant's line."""
        self.leave(choice)
        self.waiting.push_front(choice)
        self.totals["preemptions"] += 1

    def computed(self, choice: Choice) -> None:
        """The choice has taken its tokens: note what its full blocks hold, free those it needs no more, and put it
        where it belongs."""
        full = choice.n_cached // self.block_tokens
        if self.shares and full > choice.n_known:
            root = self.root(choice)
            for number in range(choice.n_known, full):
                self.pool.index.add(choice.blocks[number], choice.content(number, root, self.block_tokens))
            choice.n_known = full
        self.drop_unseen(choice)
        if choice in self.prefilling:
            choice.n_unread = 0
            if choice.decodes:
                self.prefilling.remove(choice)
                self.decoding.append(choice)
                for follower in reversed(self.followers.pop(choice.request.id, [])):
                    self.waiting.push_front(follower)
        if choice.slide():
            self.read_again(choice)

    def read_again(self, choice: Choice) -> None:
        """A choice whose document has become another one, with half of a context free, begins it in its slot."""
        self.release(choice.blocks)
        choice.empty()
        self.decoding.remove(choice)
        self.prefilling.append(choice)

    def drop_unseen(self, choice: Choice) -> None:
        """Free the blocks that lie before every layer's window."""
        for number in range(choice.n_dropped, self.n_unseen(choice.n_cached)):
            self.pool.release(choice.blocks[number])
            choice.blocks[number] = -1
            choice.n_dropped = number + 1

    def n_unseen(self, n_cached: int) -> int:
        """Blocks of a document with so many tokens in the cache that lie before every layer's window."""
        return 0 if self.window is None else max(0, (n_cached + 1 - self.window) // self.block_tokens)

    def leave(self, choice: Choice) -> None:
        """Take a choice from wherever it stands; what it held is given back, its last blocks to be the first reused."""
        if choice.slot is None:
            waits = self.followers.get(choice.request.id, [])
            (waits if choice in waits else self.waiting).remove(choice)
            if not waits:
                self.followers.pop(choice.request.id, None)
            return
        (self.prefilling if choice in self.prefilling else self.decoding).remove(choice)
        heapq.heappush(self.free_slots, choice.slot)
        self.release(choice.blocks)
        if choice.source is not None:
            self.readers.remove(choice.source)
        choice.give_back()

    def release(self, blocks: list[int]) -> None:
        """Give back a document's blocks, the last to be the first reused."""
        for block in reversed(blocks):
            if block >= 0:
                self.pool.release(block)

    def forget_all(self, version: str) -> None:
        """The weights are others from now on: nothing that was computed is of use. Nobody may be running."""
        assert not self.running
        self.version = version
        self.pool.forget_all()
        for choice in [*self.waiting, *(one for waits in self.followers.values() for one in waits)]:
            choice.contents.clear()

    def next_chunks(self) -> list[Choice]:
        """The choices that read in this step: whole chunks, `chunk_tokens` tokens together or one chunk, from the front
        of a line that goes round, so that a long prompt does not hold up short ones behind it. A source that is not
        encoded yet counts, and is read at once: its tokens see each other."""
        chosen: list[Choice] = []
        tokens = 0
        for choice in self.prefilling:
            tokens += choice.n_unread + choice.next_end(self.chunk_tokens, choice.n_cached) - choice.n_cached
            if chosen and tokens > self.chunk_tokens:
                break
            chosen.append(choice)
        self.prefilling.rotate(-len(chosen))
        return chosen

    def counters(self) -> dict[str, float]:
        """Figures of the places, and totals so far."""
        pool = self.pool
        return {
            "running": len(self.prefilling) + len(self.decoding),
            "waiting": self.n_waiting,
            "slots_in_use": self.n_slots - len(self.free_slots),
            "slots_total": self.n_slots,
            "blocks_used": pool.n_held,
            "blocks_cached": len(pool.idle),
            "blocks_free": pool.n_free,
            "evictions_total": pool.n_evicted,
            **{f"{name}_total": value for name, value in self.totals.items()},
        }


def rank(choice: Choice) -> tuple[int, int, int]:
    """The lower, the longer it keeps its blocks: by importance, then by age."""
    return -choice.request.priority, choice.arrival, choice.index
