"""A shard cut into segments: pieces of documents of a length that fits, each with a number. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.data.packing import first_fit
from fledge.data.shards import Shard
from fledge.errors import DataError
from fledge.text.tokenizer import Tokenizer

Layouts = Literal["packed", "padded"]
PACKED_AT_ONCE = 8192  # segments: first-fit looks at every open row for each of them


@dataclass(frozen=True)
class Frame:
    """The ids that stand around each row: BERT's [CLS] … [SEP], RoBERTa's <s> … </s>."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        return len(self.before) + len(self.after)

    def around(self, ids: np.ndarray) -> np.ndarray:
        """int64 [n] -> int64 [n + n_tokens]."""
        return np.concatenate([np.array(self.before, np.int64), ids, np.array(self.after, np.int64)])


def frame_of(tokenizer: Tokenizer) -> Frame:
    """cls and sep where the tokenizer has them, else bos and eos, else nothing."""
    roles = tokenizer.special
    before, after = roles.get("cls", roles.get("bos")), roles.get("sep", roles.get("eos"))
    return Frame(() if before is None else (before,), () if after is None else (after,))


class Segments:
    """Each document in pieces of `most` tokens side by side, the last of which may be shorter; pieces of fewer than
    `least` tokens are left out. The bos and eos that a shard stores around a document are no part of any piece.
    `cross_documents` takes the whole shard as one document, as it is stored."""

    def __init__(self, shard: Shard, tokenizer: Tokenizer, most: int, least: int = 1, cross_documents: bool = False):
        if most < least:
            raise DataError(
                f"{shard.name} shard: expected rows with room for {least} tokens, got {most}; raise the row"
            )
        self.shard, self.most = shard, most
        if cross_documents:
            begins, ends = np.array([0]), np.array([shard.n_tokens])
        else:
            begins, ends = inner_documents(shard, tokenizer)
        counts = -(-(ends - begins) // most)
        of_document = np.repeat(np.arange(len(begins)), counts)
        places = np.arange(len(of_document)) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = begins[of_document] + places * most
        lengths = np.minimum(most, ends[of_document] - starts)
        kept = lengths >= least
        self.starts, self.lengths = starts[kept], lengths[kept]
        if not len(self.starts):
            raise DataError(
                f"{shard.name} shard: expected documents of at least {least} tokens, got {shard.n_tokens} tokens in "
                f"{shard.n_documents}; add text"
            )

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def n_tokens(self) -> int:
        """Tokens of all segments."""
        return int(self.lengths.sum())

    def ids(self, number: int) -> np.ndarray:
        """The tokens of one segment, int64 [n]."""
        start = int(self.starts[number])
        return self.shard.tokens[start : start + int(self.lengths[number])].astype(np.int64)

    def packed(self, capacity: int, frame_tokens: int) -> PackedRows:
        """Rows of framed segments, of at most `capacity` tokens: full ones alone, the others first-fit, some thousands
        at a time so that a corpus of short documents takes no square of their number."""
        full = self.lengths + frame_tokens == capacity
        parts, shared = np.flatnonzero(~full), []
        for start in range(0, len(parts), PACKED_AT_ONCE):
            group = parts[start : start + PACKED_AT_ONCE]
            plan = first_fit((self.lengths[group] + frame_tokens).tolist(), capacity, 0, start)
            shared += [tuple(group[list(row)].tolist()) for row in plan.rows]
        return PackedRows(np.flatnonzero(full), shared)


@dataclass(frozen=True)
class PackedRows:
    """The segments of each row: those that fill one alone first, then the rows that several share."""

    full: np.ndarray
    shared: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.full) + len(self.shared)

    def __getitem__(self, row: int) -> tuple[int, ...]:
        return (int(self.full[row]),) if row < len(self.full) else self.shared[row - len(self.full)]


def inner_documents(shard: Shard, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Where each document begins and ends without its bos and eos, int64 [documents] twice; empty ones left out."""
    begins, ends = shard.starts[:-1].copy(), shard.starts[1:].copy()
    there = ends > begins
    begins, ends = begins[there], ends[there]
    if len(begins) and tokenizer.bos_id is not None:
        begins += shard.rows(begins, 1)[:, 0] == tokenizer.bos_id
    if len(ends) and tokenizer.eos_id is not None:
        ends -= (shard.rows(ends - 1, 1)[:, 0] == tokenizer.eos_id) & (ends > begins)
    there = ends > begins
    return begins[there], ends[there]
