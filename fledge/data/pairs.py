"""Pairs of segments: next-sentence prediction (Devlin et al. 2018, §3.1) and sentence-order prediction (Lan et al.
2019, arXiv 1909.11942, §3.1). A pair is a pure function of (seed, epoch, number). Imports no torch.

A number is a chunk: sentences of one document that fill a row. A point within the chunk divides it into A and B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.data.keyed import below, uniforms
from fledge.data.objectives import PairsConfig
from fledge.data.segments import inner_documents
from fledge.data.sentences import sentence_bounds, sentence_marks
from fledge.data.shards import Shard
from fledge.errors import ConfigError, DataError
from fledge.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Pair:
    """Two segments, int64 [n], and `answer`: 0 where the text goes on so, 1 where B is of another document or the two
    are swapped."""

    a: np.ndarray
    b: np.ndarray
    answer: int
    name: str


class Pairs:
    """The pairs of a shard: `len` of them in each epoch. `room`: most tokens of A and B together."""

    def __init__(
        self,
        shard: Shard,
        tokenizer: Tokenizer,
        config: PairsConfig,
        relation: Literal["next", "order"],
        room: int,
        seed: int,
    ):
        if room < 4:
            raise ConfigError(f"row_tokens: expected room for two segments of two tokens, got {room}; raise it")
        self.shard, self.config, self.relation, self.room, self.seed = shard, config, relation, room, seed
        self.find_sentences(tokenizer)
        self.find_chunks()
        if relation == "next" and self.n_documents < 2:
            raise DataError(
                f"{shard.name} shard: expected two documents, so that a segment of another one can follow, got "
                f"{self.n_documents}; add documents, or use objective=masked+order"
            )
        if not len(self.chunks):
            raise DataError(f"{shard.name} shard: expected a document of two sentences, got none; add text")

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks, each counted up to the room of a row."""
        return int(np.minimum(self.room, self.edges[self.chunks[:, 2]] - self.edges[self.chunks[:, 1]]).sum())

    def find_sentences(self, tokenizer: Tokenizer) -> None:
        """`edges` int64: where sentences begin, and the end of each document's last; `first` and `last` int64: which of
        these are a document's first sentence and its end."""
        marks = sentence_marks(tokenizer)
        edges, first, last, n = [], [], [], 0
        for begin, end in zip(*inner_documents(self.shard, tokenizer), strict=True):
            bounds = sentence_bounds(self.shard.tokens[int(begin) : int(end)], marks, max(1, self.room // 2))
            edges.append(bounds + begin)
            first.append(n)
            n += len(bounds)
            last.append(n - 1)
        self.edges = np.concatenate([np.zeros(0, np.int64), *edges])
        self.first, self.last = np.array(first, np.int64), np.array(last, np.int64)
        self.n_documents = len(first)

    def find_chunks(self) -> None:
        """`chunks` int64 [n, 3]: document, first sentence, the sentence after the last. Each has two or more."""
        chunks = []
        for document, (first, last) in enumerate(zip(self.first.tolist(), self.last.tolist(), strict=True)):
            at = first
            while last - at >= 2:
                stop = self.filled(at, last, self.room)
                stop = last if last - stop == 1 else stop  # one sentence left over: too little for a pair
                chunks.append((document, at, stop))
                at = stop
        self.chunks = np.array(chunks, np.int64).reshape(-1, 3)

    def filled(self, at: int, last: int, n_tokens: int, least: int = 2) -> int:
        """Where the sentences from `at` on hold `n_tokens`: at least `least` of them, none from `last` on."""
        found = int(np.searchsorted(self.edges[at : last + 1], self.edges[at] + n_tokens)) + at
        return min(last, max(found, at + least))

    def pair(self, epoch: int, number: int) -> Pair:
        """Pair `number` of `epoch`."""
        key = ("pair", self.seed, epoch, number)
        document, at, stop = self.chunks[number].tolist()
        short, changed, cut, other, place = uniforms(5, *key)
        n_tokens = self.room
        if short < self.config.short:
            n_tokens = 2 + int(below(self.room - 1, 1, *key, "length")[0])
            stop = self.filled(at, stop, n_tokens)
        middle = at + 1 + int(cut * (stop - at - 1))
        a, b, answer = self.span(at, middle), self.span(middle, stop), int(changed < self.config.changed)
        if answer and self.relation == "next":
            b = self.elsewhere(document, float(other), float(place), n_tokens - len(a))
        a, b = truncated(a, b, self.room, *key, "cut")
        if answer and self.relation == "order":
            a, b = b, a
        return Pair(a, b, answer, f"{self.shard.name}@{self.edges[at]}")

    def elsewhere(self, document: int, other: float, place: float, n_tokens: int) -> np.ndarray:
        """Sentences of another document, from a random one on: enough for `n_tokens`."""
        chosen = int(other * (self.n_documents - 1))
        chosen += chosen >= document
        first, last = int(self.first[chosen]), int(self.last[chosen])
        at = first + int(place * (last - first))
        return self.span(at, self.filled(at, last, max(1, n_tokens), least=1))

    def span(self, at: int, stop: int) -> np.ndarray:
        return self.shard.tokens[int(self.edges[at]) : int(self.edges[stop])].astype(np.int64)


def truncated(a: np.ndarray, b: np.ndarray, room: int, *key: object) -> tuple[np.ndarray, np.ndarray]:
    """Both cut to `room` tokens in all: the longer one loses tokens until both are equal, then both in turn; each token
    goes from the front or the back by chance, so that neither end is favoured."""
    excess = max(0, len(a) + len(b) - room)
    from_longer = min(excess, abs(len(a) - len(b)))
    rest = excess - from_longer
    lost_a = (from_longer if len(a) > len(b) else 0) + rest // 2
    front = uniforms(excess, *key) < 0.5
    cut_a, cut_b = int(front[:lost_a].sum()), int(front[lost_a:].sum())
    lost_b = excess - lost_a
    return a[cut_a : len(a) - lost_a + cut_a], b[cut_b : len(b) - lost_b + cut_b]
