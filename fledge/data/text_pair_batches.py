"""Batches of a source to read and a target to write, for encoder-decoders: a pair a row, padded to the longest.

B rows, S source tokens, T target tokens. The decoder reads the start id and the target but its last token, and is
trained on every token of the target (teacher forcing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fledge.batch import Batch
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.data.task_rows import PairExample
from fledge.text.sides import Sides


class TextPairBatches(KeyedBatches):
    """The endless sequence of batches over pairs. `n_cut`: sources and targets that were cut, or just fit."""

    def __init__(self, sides: Sides, examples: Sequence[PairExample], start_id: int, rows: int, seed: int):
        self.examples, self.start_id, self.pad_id = examples, start_id, sides.tokenizer.pad_id or 0
        self.sources = sides.sources([example.source for example in examples])
        self.targets = sides.targets([example.target or "" for example in examples])
        cut = [(self.sources, sides.source_tokens), (self.targets, sides.target_tokens)]
        self.n_cut = tuple(sum(len(ids) == most for ids in side) for side, most in cut)
        super().__init__(len(examples), sum(map(len, self.targets)), rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        numbers = [number for _, number in chosen]
        read = laid([[read_piece(self.sources[n])] for n in numbers], 0, self.pad_id)
        names = tuple(self.examples[n].place for n in numbers)
        written = laid([[self.written_piece(self.targets[n])] for n in numbers], 0, self.pad_id, names)
        return replace(written, source=(read.tokens, read.layout))

    def written_piece(self, target: Sequence[int]) -> Piece:
        ids = np.array(target, np.int64)
        return Piece(np.concatenate([[self.start_id], ids[:-1]]), ids, np.ones(len(ids), np.float32))


def read_piece(source: Sequence[int]) -> Piece:
    ids = np.array(source, np.int64)
    return Piece(ids, ids, np.zeros(len(ids), np.float32))
