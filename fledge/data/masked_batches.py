"""Batches for masked language models: rows of segments, or pairs of segments with their relation.

A row's tokens stay where they are: the target of a place is the token that stood there, and its weight is 1 where the
model must name it. Masks are keyed by (seed, epoch, row), so that each epoch has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from fledge.batch import Batch
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.data.masking import MaskingConfig, mask_vocabulary, masked
from fledge.data.pairs import Pairs, PairsConfig
from fledge.data.segments import Layouts, PackedRows, Segments, frame_of
from fledge.data.shards import Shard
from fledge.errors import ConfigError
from fledge.text.tokenizer import Tokenizer


class Masker:
    """Masks framed rows: (ids, epoch, number) -> Piece."""

    def __init__(self, tokenizer: Tokenizer, config: MaskingConfig, seed: int):
        self.vocabulary, self.config, self.seed = mask_vocabulary(tokenizer, config.whole_words), config, seed

    def piece(self, ids: np.ndarray, epoch: int, number: int, kind: np.ndarray | None = None) -> Piece:
        key = ("mask", self.seed, epoch if self.config.dynamic else 0, number)
        inputs, chosen = masked(ids, self.vocabulary, self.config, *key)
        return Piece(inputs, ids, chosen.astype(np.float32), kind)


class MaskedBatches(KeyedBatches):
    """Rows of masked text: `packed` puts short segments side by side, each a document that sees itself alone;
    `padded` gives each its own row."""

    def __init__(
        self,
        shard: Shard,
        tokenizer: Tokenizer,
        config: MaskingConfig,
        row_tokens: int,
        rows: int,
        seed: int,
        layout: Layouts = "packed",
        cross_documents: bool = False,
    ):
        self.frame, self.row_tokens, self.pad_id = frame_of(tokenizer), row_tokens, tokenizer.pad_id or 0
        room = row_tokens - self.frame.n_tokens
        self.segments = Segments(shard, tokenizer, room, cross_documents=cross_documents)
        self.masker = Masker(tokenizer, config, seed)
        self.table: PackedRows | None = None
        if layout == "packed":
            self.table = self.segments.packed(row_tokens, self.frame.n_tokens)
        n_rows = len(self.table) if self.table is not None else len(self.segments)
        super().__init__(n_rows, self.segments.n_tokens, rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        rows, names = [], []
        for epoch, row in chosen:
            numbers = (row,) if self.table is None else self.table[row]
            framed = ((number, self.frame.around(self.segments.ids(number))) for number in numbers)
            rows.append([self.masker.piece(ids, epoch, number) for number, ids in framed])
            names.append("+".join(f"{self.segments.shard.name}@{self.segments.starts[number]}" for number in numbers))
        return laid(rows, self.row_tokens, self.pad_id, tuple(names))


class PairBatches(KeyedBatches):
    """[CLS] A [SEP] B [SEP], masked, a pair a row, kind 0 for A and 1 for B; `answers` tells their relation."""

    def __init__(
        self,
        shard: Shard,
        tokenizer: Tokenizer,
        masking: MaskingConfig,
        pairs: PairsConfig,
        relation: Literal["next", "order"],
        row_tokens: int,
        rows: int,
        seed: int,
        kinds: bool = True,
    ):
        self.frame, self.row_tokens, self.pad_id = frame_of(tokenizer), row_tokens, tokenizer.pad_id or 0
        if not self.frame.after:
            raise ConfigError("tokenizer: expected a sep or eos token between two segments, got none; use another one")
        room = row_tokens - self.frame.n_tokens - len(self.frame.after)
        self.pairs = Pairs(shard, tokenizer, pairs, relation, room, seed)
        self.masker, self.kinds = Masker(tokenizer, masking, seed), kinds
        super().__init__(len(self.pairs), self.pairs.n_tokens, rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        rows, names, answers = [], [], []
        for epoch, number in chosen:
            pair = self.pairs.pair(epoch, number)
            first = self.frame.around(pair.a)
            second = np.concatenate([pair.b, np.array(self.frame.after, np.int64)])
            kind = np.repeat([0, 1], [len(first), len(second)]) if self.kinds else None
            rows.append([self.masker.piece(np.concatenate([first, second]), epoch, number, kind)])
            names.append(pair.name)
            answers.append(pair.answer)
        return replace(laid(rows, self.row_tokens, self.pad_id, tuple(names)), answers=torch.tensor(answers))
