"""Beam search: the answers of highest total log-probability that a search of fixed width finds. Imports no torch.

A `Search` goes a step at a time in the blocks and slots that it is given: the whole of a runner's (`beam_search`), or
what an engine has to spare beside its other answers (fledge/engine/searches.py). Beams share the blocks of the
beginning they have in common; of a last, unfinished block each but the first that goes on from it takes a copy.
What finishes, what stops and what scores are as `transformers.generate` has them, whose answers these are.

V entries of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fledge.engine.length import answer_room
from fledge.engine.request import BeamSearch, Sampling, check
from fledge.engine.row import Row, RunnerFace, Source, as_array
from fledge.errors import EngineError, RequestError
from fledge.text.stream import TextStream

if TYPE_CHECKING:
    from fledge.engine.request import FinishReason
    from fledge.text.tokenizer import Tokenizer

CHUNK_TOKENS = 512
RUN = 64  # values whose maximum stands for them
UNSEARCHED = (
    "min_tokens", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "logit_bias", "stop", "logprobs", "constraint",
)  # fmt: skip
"""What of a request's sampling does not go with a search."""


@dataclass(frozen=True)
class Found:
    """A finished answer: its tokens, a stop token included, and its score."""

    token_ids: tuple[int, ...]
    score: float


@dataclass
class Beam:
    """A running answer: `blocks` of cache for its first `n_cached` tokens, prompt included. `copied`: the block whose
    content its last one is still to take over, and that one."""

    ids: tuple[int, ...]
    score: float
    blocks: tuple[int, ...] = ()
    n_cached: int = 0
    copied: tuple[int, int] | None = None


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
    needed_blocks(runner, len(prompt_ids) + search.max_tokens, search.n_beams)
    places = Places(runner, list(range(runner.n_blocks)), range(search.n_beams), source)
    work = Search(places, prompt_ids, search, stop_ids, vocab_size)
    while not work.step():
        pass
    return work.answers()


def text_of(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], token_ids: Sequence[int], stop_ids: Collection[int]
) -> tuple[str, FinishReason]:
    """The text of a whole answer, without a stop token at its end, and why it ended."""
    stopped = token_ids[-1] in stop_ids
    stream = TextStream(tokenizer, prompt_ids=prompt_ids)
    text = "".join(map(stream.push, token_ids[:-1] if stopped else token_ids)) + stream.finish()
    return text, "stop" if stopped else "length"


def check_search(sampling: Sampling, search: BeamSearch) -> BeamSearch:
    """A request's search, of as many tokens as its sampling says. Raises RequestError for what does not go with one."""
    plain = Sampling()
    for name in UNSEARCHED:
        if getattr(sampling, name) != getattr(plain, name):
            message = f"{name}: does not go with a beam search, which does not sample; leave it out"
            raise RequestError(message, name, "unsupported_parameter")
    check(sampling.temperature in (0, 1), "temperature", "0 or 1 beside a beam search", sampling.temperature)
    check(sampling.n <= search.n_beams, "n", f"1..{search.n_beams}, the number of beams", sampling.n)
    return replace(search, max_tokens=sampling.max_tokens).validated()


class Search:
    """A beam search under way."""

    def __init__(
        self,
        places: Places,
        prompt_ids: Sequence[int],
        search: BeamSearch,
        stop_ids: Collection[int],
        vocab_size: int,
        chunk_tokens: int = CHUNK_TOKENS,
    ):
        self.places, self.vocab_size, self.chunk_tokens = places, vocab_size, chunk_tokens
        self.n_prompt, self.length = len(prompt_ids), 0
        stops = np.array(sorted(i for i in stop_ids if i < vocab_size), dtype=np.int64)
        self.running = [Beam(tuple(prompt_ids), 0.0)]
        self.groups = [Group(search, stops, [0]) for _ in range(search.n_groups)]

    def step(self) -> bool:
        """Run the model once: over a chunk of the prompt, or over every beam's last token; whether the search is over.
        Raises EngineError for logits that are not finite."""
        logits = self.places.logits(self.running, self.chunk_tokens)
        if logits is None:
            return False
        self.length += 1
        log_p = log_softmax(logits[:, : self.vocab_size])
        totals = log_p + np.array([beam.score for beam in self.running], np.float32)[:, None]
        said = np.zeros(self.vocab_size, np.float32)  # how many beams of the groups before chose a token in this step
        steps: list[tuple[int, int, float]] = []
        for group in self.groups:
            going_on = group.advance(totals, said, self.running, self.length)
            group.members = list(range(len(steps), len(steps) + len(going_on)))
            steps += going_on
        if steps:
            self.running = self.places.follow(self.running, steps)
        return not steps

    def answers(self) -> list[Found]:
        """What is finished, best first."""
        found = [one for group in self.groups for one in group.done.found]
        found.sort(key=lambda one: -one.score)
        return [Found(one.token_ids[self.n_prompt :], one.score) for one in found]


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
        penalty = self.search.diversity_penalty
        for rank, (row, token, _) in enumerate(best_of(totals - penalty * said if penalty else totals, n_kept)):
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


def needed_blocks(runner: RunnerFace, n_tokens: int, n_beams: int) -> int:
    """Blocks of cache that a search of answers of so many tokens, prompt included, takes at most. Raises RequestError
    where the runner hasn't as many, or lacks slots, or can't go on from one place twice."""
    if not runner.shares:
        raise RequestError("n_beams: this model's recurrent layers can't go on from one place twice", "n_beams")
    need = n_beams * -(-n_tokens // runner.block_tokens)
    if need > runner.n_blocks or n_beams > runner.n_slots:
        raise RequestError(
            f"n_beams: expected a cache of {need} blocks and {n_beams} slots, got {runner.n_blocks} and "
            f"{runner.n_slots}; ask for fewer beams or tokens, or give the engine more",
            "n_beams",
        )
    return need


class Places:
    """Blocks of a runner's cache, dealt out to beams and counted, and a slot for each beam."""

    def __init__(
        self,
        runner: RunnerFace,
        blocks: Sequence[int],
        slots: Sequence[int],
        source: Source | None = None,
        adapter: str = "",
    ):
        self.runner, self.size, self.source, self.adapter = runner, runner.block_tokens, source, adapter
        self.free, self.slots = list(reversed(blocks)), slots  # the first are dealt first

    def logits(self, beams: list[Beam], chunk_tokens: int) -> np.ndarray | None:
        """float32 [beams, V] after every beam's last token; None where a chunk of what is not in the cache was computed
        and more is left."""
        for number, beam in enumerate(beams):
            if len(beam.ids) - beam.n_cached > chunk_tokens:
                self.runner.forward([self.row(beam, number, beam.n_cached + chunk_tokens)])
                return None
        rows = [self.row(beam, number, len(beam.ids)) for number, beam in enumerate(beams)]
        return np.stack([as_array(logits)[-1] for logits in self.runner.forward(rows)])

    def row(self, beam: Beam, number: int, end: int) -> Row:
        while len(beam.blocks) * self.size < end:
            beam.blocks += (self.free.pop(),)
        start, beam.n_cached = beam.n_cached, end
        ids, slot = beam.ids[start:end], self.slots[number]
        copied, beam.copied = beam.copied, None
        return Row(beam.blocks, start, ids, sequence=slot, source=self.source, adapter=self.adapter, copied=copied)

    def follow(self, parents: list[Beam], steps: list[tuple[int, int, float]]) -> list[Beam]:
        """The beams that go on from `parents` by (parent, token, log-probability) steps. The first child of a parent
        takes its last block, if that is unfinished; the others share the full ones and take a copy of it."""
        held = {block for number, _, _ in steps for block in parents[number].blocks}
        self.free += [block for block in {b for parent in parents for b in parent.blocks} if block not in held]
        children: list[Beam] = []
        taken: set[int] = set()
        for number, token, total in steps:
            parent = parents[number]
            child = Beam((*parent.ids, token), total, parent.blocks, parent.n_cached)
            if number in taken and parent.n_cached % self.size:
                *full, last = parent.blocks
                child.copied = last, self.free.pop()
                child.blocks = (*full, child.copied[1])
            taken.add(number)
            children.append(child)
        return children


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, float32 [beams, V]. Raises EngineError when a logit is not finite."""
    if not np.isfinite(logits).all():
        raise EngineError("engine: expected finite logits, got others; check the weights")
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float32))


def bound(values: np.ndarray, n: int) -> np.float32:
    """A number that the `n` largest of these reach and few others do: of runs of values, the n-th largest maximum."""
    size = min(RUN, len(values) // n)
    largest = values[: len(values) // size * size].reshape(-1, size).max(1)
    return np.partition(largest, len(largest) - n)[len(largest) - n]


def best_of(totals: np.ndarray, n: int) -> list[tuple[int, int, float]]:
    """(beam, token, log-probability) of the `n` best continuations, best first; equals by beam and token."""
    flat = totals.ravel()
    n = min(n, len(flat))
    places = np.flatnonzero(flat >= bound(flat, n))
    best = places[np.argsort(-flat[places], kind="stable")][:n]
    return [(int(i) // totals.shape[1], int(i) % totals.shape[1], float(flat[i])) for i in best]
