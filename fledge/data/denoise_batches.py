"""Batches for encoder–decoders, a corrupted source and what to write, and for decoders that see a prefix whole.

Shapes: B rows, S source tokens, T target tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fledge.batch import GLOBAL, Batch
from fledge.data.denoise import Corruption, split_at
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.data.segments import Layouts, Segments, frame_of
from fledge.data.shards import Shard
from fledge.text.tokenizer import Tokenizer

FRAME = 2  # tokens that a corruption may put around a segment


class DenoiseBatches(KeyedBatches):
    """`source` is what the corruption made of each segment, [B, S], the decoder's tokens are `start_id` and the target
    up to its last token, the targets the target, [B, T]; rows as long as the batch needs. `packed` puts short segments
    side by side, each target beside its own source; `padded` gives each a row of its own."""

    def __init__(
        self,
        segments: Segments,
        corruption: Corruption,
        start_id: int,
        pad_id: int,
        most: tuple[int, int],
        rows: int,
        seed: int,
        layout: Layouts = "padded",
    ):
        self.segments, self.corruption, self.start_id, self.pad_id, self.most = (
            segments, corruption, start_id, pad_id, most,
        )  # fmt: skip
        self.table = segments.packed(segments.most + FRAME, FRAME) if layout == "packed" else None
        super().__init__(len(segments) if self.table is None else len(self.table), segments.n_tokens, rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        sources, targets, names = [], [], []
        for epoch, row in chosen:
            numbers = (row,) if self.table is None else self.table[row]
            pairs = [self.pair(epoch, number) for number in numbers]
            sources.append([source for source, _ in pairs])
            targets.append([target for _, target in pairs])
            names.append("+".join(f"{self.segments.shard.name}@{self.segments.starts[number]}" for number in numbers))
        shared = any(len(row) > 1 for row in sources)
        read = laid(sources, beyond(sources) if shared else 0, self.pad_id)
        written = laid(targets, beyond(targets) if shared else 0, self.pad_id, tuple(names))
        return replace(written, source=(read.tokens, read.layout))

    def pair(self, epoch: int, number: int) -> tuple[Piece, Piece]:
        """What is read of one segment, and what is written."""
        source, target = self.corruption(self.segments.ids(number), "denoise", self.seed, epoch, number)
        source, target = fitted(source, self.most[0]), fitted(target, self.most[1])
        inputs = np.concatenate([[self.start_id], target[:-1]])
        read = Piece(source, source, np.zeros(len(source), np.float32))
        return read, Piece(inputs, target, np.ones(len(target), np.float32))


def beyond(rows: Sequence[Sequence[Piece]]) -> int:
    """A multiple of eight above the longest row: where every row ends in padding, document i of a packed source stands
    beside document i of its target."""
    return max(sum(len(piece.ids) for piece in row) for row in rows) // 8 * 8 + 8


def fitted(ids: np.ndarray, most: int) -> np.ndarray:
    """At most so many, the last one kept: noise may put more masks in than it takes tokens out."""
    return ids if len(ids) <= most else np.append(ids[: most - 1], ids[-1])


class PrefixBatches(KeyedBatches):
    """Prefix LM of a decoder alone: of each segment a random part is the prefix, kind GLOBAL, which the whole document
    sees; only what follows it is trained on. Short segments are packed."""

    def __init__(
        self, shard: Shard, tokenizer: Tokenizer, row_tokens: int, rows: int, seed: int, cross_documents: bool = False
    ):
        self.frame, self.row_tokens, self.pad_id = frame_of(tokenizer), row_tokens, tokenizer.pad_id or 0
        # the last token of a row is a target only
        self.segments = Segments(shard, tokenizer, row_tokens + 1 - self.frame.n_tokens, 2, cross_documents)
        self.table = self.segments.packed(row_tokens, self.frame.n_tokens - 1)
        super().__init__(len(self.table), self.segments.n_tokens, rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        rows, names = [], []
        for epoch, row in chosen:
            rows.append([self.piece(epoch, number) for number in self.table[row]])
            names.append("+".join(f"{self.segments.shard.name}@{self.segments.starts[n]}" for n in self.table[row]))
        return laid(rows, self.row_tokens, self.pad_id, tuple(names))

    def piece(self, epoch: int, number: int) -> Piece:
        ids = self.segments.ids(number)
        prefix = len(self.frame.before) + split_at(len(ids), "prefix", self.seed, epoch, number)
        ids = self.frame.around(ids)
        places = np.arange(len(ids) - 1)
        weight = (places >= prefix - 1).astype(np.float32)  # the prefix's last place predicts the first one after it
        return Piece(ids[:-1], ids[1:], weight, np.where(places < prefix, GLOBAL, 0))
