"""Beam search: the answers of highest total log-probability that a search of fixed width finds. Imports no torch.

It drives a runner by itself, one prompt at a time, and owns its whole cache meanwhile. Beams share the blocks of the
beginning they have in common; one that goes on from another's computes the tokens of its last, unfinished block anew.
What finishes, what stops and what scores are as `transformers.generate` has them, whose answers these are.

V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from fledge.engine.length import answer_room
from fledge.engine.request import Completion, Request, check
from fledge.engine.row import Row, RunnerFace, Source, as_array
from fledge.engine.source import named, with_start
from fledge.errors import EngineError, RequestError
from fledge.text.stream import TextStream

if TYPE_CHECKING:
    from fledge.engine.core import Engine

EarlyStopping = bool | Literal["never"]
CHUNK_TOKENS = 512
MAX_BEAMS = 64


@dataclass(frozen=True)
class BeamSearch:
    """How to search. `n_beams` answers are kept at each length and `n_beams` come out at the end, best first."""

    n_beams: int = 4
    max_tokens: int = 128
    length_penalty: float = 1.0
    """An answer's score is its log-probability over its length to this power: above 0 favours long answers."""
    early_stopping: EarlyStopping = False
    """True: stop at `n_beams` finished answers; False: when the best running one, at its length, is below them all;
    never: when it could not be above them at any length."""
    n_groups: int = 1
    """Above 1: diverse beam search (Vijayakumar et al. 2016). The beams search in so many groups, one after another in
    each step; answers of different groups differ."""
    diversity_penalty: float = 0.0
    """What a token loses, when a group chooses, for each beam of the groups before that has chosen it in the same step.
    It decides the choice alone: scores are of log-probabilities."""

    @property
    def group_beams(self) -> int:
        return self.n_beams // self.n_groups

    def validated(self) -> BeamSearch:
        """This, after checking every range. Raises RequestError."""
        check(1 <= self.n_beams <= MAX_BEAMS, "n_beams", f"1..{MAX_BEAMS}", self.n_beams)
        check(self.max_tokens >= 1, "max_tokens", "at least 1", self.max_tokens)
        check(-10 <= self.length_penalty <= 10, "length_penalty", "-10..10", self.length_penalty)
        stopping = self.early_stopping
        check(stopping in (True, False, "never"), "early_stopping", "true, false or never", stopping)
        groups, penalty = self.n_groups, self.diversity_penalty
        divides = 1 <= groups <= self.n_beams and self.n_beams % groups == 0
        check(divides, "n_groups", f"a divisor of n_beams, {self.n_beams}", groups)
        several = groups > 1
        wanted = "above 0 and at most 1e4 for several groups" if several else "0 for one group"
        check(0 < penalty <= 1e4 if several else penalty == 0, "diversity_penalty", wanted, penalty)
        return self


@dataclass(frozen=True)
class Found:
    """A finished answer: its tokens, a stop token included, and its score."""

    token_ids: tuple[int, ...]
    score: float


@dataclass
class Beam:
    """A running answer: `blocks` of cache for its first `n_cached` tokens, prompt included."""

    ids: tuple[int, ...]
    score: float
    blocks: tuple[int, ...] = ()
    n_cached: int = 0


def beam_search(
    runner: RunnerFace,
    prompt_ids: Sequence[int],
    search: BeamSearch,
    stop_ids: Collection[int],
    vocab_size: int,
    source: Source | None = None,
) -> list[Found]:
    """The answers that the search finds, best first; those that `max_tokens` cut count as finished.

    Raises RequestError (ranges, length, a model with recurrent layers, a cache too small) and EngineError (logits that
    are not finite). `vocab_size`: ids that may be chosen. `source` is for the encoder of a model that has one; the
    runner keeps it until it is told to `forget`.
    """
    search.validated()
    answer_room(len(prompt_ids), search.max_tokens, runner.context_tokens)
    if not prompt_ids or not 0 <= min(prompt_ids) <= max(prompt_ids) < vocab_size:
        raise RequestError(f"prompt: expected some token ids in 0..{vocab_size - 1}", "prompt")
    places = Places(runner, len(prompt_ids) + search.max_tokens, search.n_beams, source)
    stops = np.array(sorted(i for i in stop_ids if i < vocab_size), dtype=np.int64)
    running, groups = [Beam(tuple(prompt_ids), 0.0)], [Group(search, stops, [0]) for _ in range(search.n_groups)]
    for length in range(1, search.max_tokens + 1):
        log_p = log_softmax(places.logits(running)[:, :vocab_size])
        totals = log_p + np.array([beam.score for beam in running], np.float32)[:, None]
        said = np.zeros(vocab_size, np.float32)  # how many beams of the groups before have chosen a token in this step
        steps: list[tuple[int, int, float]] = []
        for group in groups:
            going_on = group.advance(totals, said, running, length)
            group.members = list(range(len(steps), len(steps) + len(going_on)))
            steps += going_on
        if not steps:
            break
        running = places.follow(running, steps)
    found = [one for group in groups for one in group.done.found]
    return [Found(one.token_ids[len(prompt_ids) :], one.score) for one in sorted(found, key=lambda one: -one.score)]


def beam_completions(
    engine: Engine, request: Request, search: BeamSearch, n: int
) -> tuple[list[Completion], list[float]]:
    """The `n` best answers of a search on an idle engine's runner, and their scores; prompt and source are the
    request's. Raises as `beam_search`, and RequestError for more answers than beams."""
    request = with_start(request, engine.runner, engine.vocab_size)
    prompt_ids, source = request.prompt_ids, named(request.source_ids)
    if not 1 <= n <= search.n_beams:
        raise RequestError(f"n: expected 1..{search.n_beams}, the number of beams, got {n}", "n")
    if engine.has_work:
        raise EngineError("engine: expected nothing else to do beside a beam search, got other requests")
    engine.scheduler.forget_all(engine.scheduler.version)  # the search writes over whatever the cache holds
    try:
        found = beam_search(engine.runner, prompt_ids, search, engine.stop_ids, engine.vocab_size, source)[:n]
    finally:
        if source is not None:
            engine.runner.forget(source.name)
    completions = [completion_of(engine, prompt_ids, index, one.token_ids) for index, one in enumerate(found)]
    return completions, [one.score for one in found]


def completion_of(engine: Engine, prompt_ids: Sequence[int], index: int, token_ids: tuple[int, ...]) -> Completion:
    """The completion that an answer's tokens, a stop token included, are."""
    stopped = token_ids[-1] in engine.stop_ids
    stream = TextStream(engine.tokenizer, prompt_ids=prompt_ids)
    text = "".join(map(stream.push, token_ids[:-1] if stopped else token_ids)) + stream.finish()
    return Completion("search", index, text, token_ids, (), "stop" if stopped else "length")


class Group:
    """Beams that compete with one another: `members` are their numbers among the running ones, none when it is over."""

    def __init__(self, search: BeamSearch, stops: np.ndarray, members: list[int]):
        self.search, self.stops, self.members = search, stops, members
        self.done = Finished(search)

    def advance(
        self, totals: np.ndarray, said: np.ndarray, running: list[Beam], length: int
    ) -> list[tuple[int, int, float]]:
        """The (beam, token, log-probability) steps that go on; what ends is kept as finished.

        totals float32 [beams, V]: log-probability of every running beam with each next token; said float32 [V]: how
        many beams of the groups before chose a token in this step, to which this group's are added.
        """
        if not self.members:
            return []
        size, totals = self.search.group_beams, totals[self.members]
        n_kept = max(2, 1 + len(self.stops)) * size  # enough that `size` go on, whatever finishes
        going_on: list[tuple[int, int, float]] = []
        for rank, (row, token, _) in enumerate(best_of(totals - self.search.diversity_penalty * said, n_kept)):
            parent, total = self.members[row], float(totals[row, token])
            if not (length == self.search.max_tokens or np.isin(token, self.stops)):
                going_on.append((parent, token, total))
            elif rank < size:
                self.done.add((*running[parent].ids, token), total, length)
                said[token] += 1
        self.done.close()
        going_on = going_on[:size]
        np.add.at(said, [token for _, token, _ in going_on], 1)
        return [] if not going_on or self.done.enough(max(going_on, key=lambda one: one[2])[2], length) else going_on


class Finished:
    """A group's best finished answers so far, their prompts included."""

    def __init__(self, search: BeamSearch):
        self.search, self.size = search, search.group_beams
        self.found: list[Found] = []
        self.new: list[Found] = []

    @property
    def full(self) -> bool:
        return len(self.found) == self.size

    def add(self, token_ids: tuple[int, ...], total: float, length: int) -> None:
        """An answer that ends in this step; after early stopping's last there are none."""
        if not (self.full and self.search.early_stopping is True):
            self.new.append(Found(token_ids, total / length**self.search.length_penalty))

    def close(self) -> None:
        """The step is over: keep the best."""
        both = sorted(self.found + self.new, key=lambda one: -one.score)
        self.found, self.new = both[: self.size], []

    def enough(self, best_running: float, length: int) -> bool:
        """Whether the search may stop, its best running answer having this log-probability at this length."""
        search = self.search
        if not self.full:
            return False
        if search.early_stopping is True or self.size == 1:  # a single beam is greedy
            return True
        if search.early_stopping == "never" and search.length_penalty > 0:
            length = search.max_tokens
        return best_running / length**search.length_penalty <= self.found[-1].score


class Places:
    """The blocks of a runner's cache, dealt out to beams and counted."""

    def __init__(self, runner: RunnerFace, n_tokens: int, n_beams: int, source: Source | None):
        if not runner.shares:
            raise RequestError("n_beams: this model's recurrent layers can't go on from one place twice", "n_beams")
        need = n_beams * -(-n_tokens // runner.block_tokens)
        if need > runner.n_blocks or n_beams > runner.n_slots:
            raise RequestError(
                f"n_beams: expected a cache of {need} blocks and {n_beams} slots, got {runner.n_blocks} and "
                f"{runner.n_slots}; ask for fewer beams or tokens, or give the engine more",
                "n_beams",
            )
        self.runner, self.size, self.source = runner, runner.block_tokens, source
        self.free = list(range(runner.n_blocks))

    def logits(self, beams: list[Beam]) -> np.ndarray:
        """float32 [beams, V] after every beam's last token; what is not in the cache is computed."""
        while any(len(beam.ids) - beam.n_cached > CHUNK_TOKENS for beam in beams):
            for beam in beams:
                self.runner.forward([self.row(beam, 0, beam.n_cached + CHUNK_TOKENS)])
        rows = [self.row(beam, number, len(beam.ids)) for number, beam in enumerate(beams)]
        return np.stack([as_array(logits)[-1] for logits in self.runner.forward(rows)])

    def row(self, beam: Beam, number: int, end: int) -> Row:
        while len(beam.blocks) * self.size < end:
            beam.blocks += (self.free.pop(),)
        start, beam.n_cached = beam.n_cached, end
        return Row(beam.blocks, start, beam.ids[start:end], sequence=number, source=self.source)

    def follow(self, parents: list[Beam], steps: list[tuple[int, int, float]]) -> list[Beam]:
        """The beams that go on from `parents` by (parent, token, log-probability) steps. The first child of a parent
        takes its last block; the others share the full ones."""
        children: list[Beam] = []
        taken: set[int] = set()
        for number, token, total in steps:
            parent = parents[number]
            n_full = parent.n_cached // self.size
            keeps = number not in taken
            taken.add(number)
            blocks = parent.blocks if keeps else parent.blocks[:n_full]
            n_cached = parent.n_cached if keeps else n_full * self.size
            children.append(Beam((*parent.ids, token), total, blocks, n_cached))
        held = {block for child in children for block in child.blocks}
        self.free += [block for block in {b for parent in parents for b in parent.blocks} if block not in held]
        return children


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, float32 [beams, V]. Raises EngineError when a logit is not finite."""
    if not np.isfinite(logits).all():
        raise EngineError("engine: expected finite logits, got others; check the weights")
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float32))


def best_of(totals: np.ndarray, n: int) -> list[tuple[int, int, float]]:
    """(beam, token, log-probability) of the `n` best continuations, best first; equals by beam and token."""
    flat = totals.ravel()
    n = min(n, len(flat))
    places = np.flatnonzero(flat >= np.partition(flat, len(flat) - n)[len(flat) - n])
    best = places[np.argsort(-flat[places], kind="stable")][:n]
    return [(int(i) // totals.shape[1], int(i) % totals.shape[1], float(flat[i])) for i in best]
