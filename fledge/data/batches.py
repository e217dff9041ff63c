"""Batches as a pure function of (seed, index): text windows, packed conversations. The only part of `data` with torch.

Shapes: B rows, T tokens a row. A row of text is a window of T+1 tokens: T inputs and, one further, T targets; a
conversation of n tokens takes n - 1 places of a row. Documents are kept apart: positions restart, attention stays
inside (`Packed`), and the last token of a document is not trained to predict the first of the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from fledge.batch import PADDING, Batch, Layout, OneDocument, Packed, Tokens
from fledge.data.packing import PackedOrder
from fledge.data.permutation import KeyedPermutation, keyed_numbers
from fledge.data.shards import Shard
from fledge.errors import DataError


class TextBatches:
    """The endless sequence of training batches of a shard: `batch(index)` for any index, in any order, at any time.

    An epoch visits every window once: windows of T tokens side by side from an offset below 2·T that is keyed by
    (seed, epoch), in an order that is keyed likewise. What an epoch leaves out at both ends (less than 2·T tokens)
    another epoch's offset brings in. A batch may straddle two epochs. `cross_documents` forgets boundaries: one stream.
    """

    def __init__(self, shard: Shard, row_tokens: int, rows: int, seed: int, cross_documents: bool = False):
        if shard.n_tokens < row_tokens + 1:
            raise DataError(
                f"{shard.name} shard: expected at least {row_tokens + 1} tokens for one row, got {shard.n_tokens}; "
                "lower the context or add text"
            )
        self.shard, self.row_tokens, self.rows, self.seed = shard, row_tokens, rows, seed
        self.rows_per_epoch = max(1, (shard.n_tokens - row_tokens) // row_tokens)
        self.offsets = shard.n_tokens - self.rows_per_epoch * row_tokens  # between T and 2·T of them
        self.reader = WindowReader(shard, cross_documents)
        self.order = lru_cache(maxsize=4)(self.epoch_order)

    @property
    def tokens_per_epoch(self) -> int:
        return self.rows_per_epoch * self.row_tokens

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""
        return self.rows_at(np.arange(index * self.rows, (index + 1) * self.rows))

    def rows_at(self, places: np.ndarray) -> Batch:
        """The rows at these places of the endless order, rising, int64 [B]."""
        return self.reader.read(self.starts(places), self.row_tokens)

    def starts(self, places: np.ndarray) -> np.ndarray:
        """Where the rows at `places` (rising) begin in the shard, int64 [B]."""
        epochs, places = np.divmod(places, self.rows_per_epoch)
        starts = np.empty_like(places)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            inside = epochs == epoch
            order, offset = self.order(epoch)
            starts[inside] = order.at(places[inside]) * self.row_tokens + offset
        return starts

    def epoch_order(self, epoch: int) -> tuple[KeyedPermutation, int]:
        offset = int(keyed_numbers("offset", self.seed, epoch)[0] % np.uint64(self.offsets))
        return KeyedPermutation(self.rows_per_epoch, self.seed, epoch), offset


class EvaluationWindows(Sequence[Batch]):
    """A shard in windows of T tokens without overlap, every token but the first a target exactly once, made as they
    are asked for. The last batch holds the one row that is shorter than T, if there is one."""

    def __init__(self, shard: Shard, row_tokens: int, rows: int = 32, cross_documents: bool = False):
        self.row_tokens, self.rows = row_tokens, rows
        self.n_targets = max(0, shard.n_tokens - 1)
        self.n_rows = self.n_targets // row_tokens
        self.n_batches = -(-self.n_rows // rows)
        self.reader = WindowReader(shard, cross_documents)

    def __len__(self) -> int:
        return self.n_batches + (self.n_targets % self.row_tokens > 0)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Batch, slice -> list of Batch
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        if index == self.n_batches:
            return self.reader.read(np.array([self.n_rows * self.row_tokens]), self.n_targets % self.row_tokens)
        first = index * self.rows
        last = min(first + self.rows, self.n_rows)
        return self.reader.read(np.arange(first, last) * self.row_tokens, self.row_tokens)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def windows(shard: Shard, row_tokens: int, rows: int = 32, cross_documents: bool = False) -> EvaluationWindows:
    """Evaluation batches of a whole shard: a sequence to index and to iterate over."""
    return EvaluationWindows(shard, row_tokens, rows, cross_documents)


class WindowReader:
    """Reads windows of a shard as a Batch and knows where documents end."""

    def __init__(self, shard: Shard, cross_documents: bool):
        self.shard = shard
        # An empty document holds no token, so it can't be the document of one.
        self.starts = np.array([0, shard.n_tokens]) if cross_documents else np.unique(shard.starts)

    def read(self, starts: np.ndarray, row_tokens: int) -> Batch:
        """The rows that begin at `starts`, int64 [B], each of T = row_tokens inputs."""
        ids_BT1 = self.shard.rows(starts, row_tokens + 1).astype(np.int64)
        ids_BT, targets_BT = (torch.from_numpy(part.copy()) for part in (ids_BT1[:, :-1], ids_BT1[:, 1:]))
        ends = self.starts[np.searchsorted(self.starts, starts, "right")]  # of each row's first document
        names = tuple(f"{self.shard.name}@{start}" for start in starts.tolist())
        if (ends > starts + row_tokens).all():
            pos_BT = torch.arange(row_tokens).expand(len(starts), row_tokens)
            tokens = Tokens(ids_BT, pos_BT, torch.zeros_like(ids_BT))
            return Batch(tokens, targets_BT, torch.ones(ids_BT.shape), OneDocument(), names)
        places_BT1 = starts[:, None] + np.arange(row_tokens + 1)
        doc_BT1 = np.searchsorted(self.starts, places_BT1, "right") - 1
        doc_BT = doc_BT1[:, :-1]
        first_BT = np.maximum(self.starts[doc_BT], starts[:, None])  # where each token's document begins in its row
        weight_BT = torch.from_numpy((doc_BT1[:, 1:] == doc_BT).astype(np.float32))
        pos_BT = places_BT1[:, :-1] - first_BT
        tokens = Tokens(ids_BT, torch.from_numpy(pos_BT), torch.from_numpy(doc_BT - doc_BT[:, :1]))
        return Batch(tokens, targets_BT, weight_BT, layout_of(pos_BT), names)


def layout_of(pos_BT: np.ndarray) -> Layout:
    """The layout of rows in which a document begins wherever the position is 0."""
    begins = np.flatnonzero(pos_BT == 0)
    if len(begins) == len(pos_BT):
        return OneDocument()
    bounds = np.append(begins, pos_BT.size)
    return Packed(tuple(bounds.tolist()), int(np.diff(bounds).max()))


class RenderedConversation(Protocol):
    """Token ids of a conversation and, for each, whether it is the assistant's to learn."""

    @property
    def ids(self) -> list[int]: ...
    @property
    def trained(self) -> list[bool]: ...


class ChatBatches:
    """Training batches of conversations: `batch(index)` for any index. Weight is the trained mask of the target.

    A conversation longer than a row is cut at its end: its first T+1 tokens are kept (`n_cut` counts them); one with
    nothing to learn, or nothing left to learn, is left out (`n_left_out`). Rows are filled by `packing.first_fit`, a
    plan per epoch; the rest of a row is padding: a document of its own with id -1, positions 0 and weight 0.
    """

    def __init__(
        self, rendered: Sequence[RenderedConversation], row_tokens: int, rows: int, seed: int, pad_id: int = 0
    ):
        self.row_tokens, self.rows, self.seed, self.pad_id = row_tokens, rows, seed, pad_id
        self.n_cut = sum(len(conversation.ids) > row_tokens + 1 for conversation in rendered)
        self.kept: list[tuple[int, np.ndarray, np.ndarray]] = []  # (number, ids [n], trained [n]), n ≤ T+1
        for number, conversation in enumerate(rendered):
            ids = np.array(conversation.ids[: row_tokens + 1], np.int64)
            trained = np.array(conversation.trained[: row_tokens + 1], bool)
            if trained[1:].any():
                self.kept.append((number, ids, trained))
        self.n_left_out = len(rendered) - len(self.kept)
        if not self.kept:
            raise DataError(
                f"conversations: expected at least one with a token to learn in its first {row_tokens + 1}, "
                f"got none of {len(rendered)}; raise the context or check the assistant's messages"
            )
        self.order = PackedOrder([len(ids) - 1 for _, ids, _ in self.kept], row_tokens, seed)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of the first epoch; other epochs pack in another order and may need a few more or less."""
        return len(self.order.plan(0).rows)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of what decides every batch: the conversations' ids and masks, T, B, the seed, the first plan."""
        digest = hashlib.sha256(f"{self.row_tokens} {self.rows} {self.seed} {self.pad_id}".encode())
        for _, ids, trained in self.kept:
            digest.update(len(ids).to_bytes(8, "little") + ids.astype("<i8").tobytes() + trained.tobytes())
        digest.update(self.order.plan(0).digest.encode())
        return digest.hexdigest()

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""
        return self.read(range(index * self.rows, (index + 1) * self.rows))

    def read(self, numbers: range) -> Batch:
        """The rows of these global numbers as a batch."""
        shape = (len(numbers), self.row_tokens)
        ids_BT, targets_BT = np.full(shape, self.pad_id, np.int64), np.full(shape, self.pad_id, np.int64)
        pos_BT, doc_BT = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64)
        weight_BT = np.zeros(shape, np.float32)
        bounds, names = [0], []
        for b, number in enumerate(numbers):
            items = self.order.row(number)
            at = 0
            for doc, item in enumerate(items):
                _, ids, trained = self.kept[item]
                end = at + len(ids) - 1
                ids_BT[b, at:end], targets_BT[b, at:end] = ids[:-1], ids[1:]
                pos_BT[b, at:end], doc_BT[b, at:end] = np.arange(end - at), doc
                weight_BT[b, at:end] = trained[1:]
                bounds.append(b * self.row_tokens + end)
                at = end
            if at < self.row_tokens:
                bounds.append((b + 1) * self.row_tokens)
            names.append("conversations " + "+".join(str(self.kept[item][0]) for item in items))
        tokens = Tokens(*(torch.from_numpy(array) for array in (ids_BT, pos_BT, doc_BT)))
        plain = len(bounds) == len(numbers) + 1
        layout = OneDocument() if plain else Packed(tuple(bounds), int(np.diff(bounds).max()))
        return Batch(tokens, torch.from_numpy(targets_BT), torch.from_numpy(weight_BT), layout, tuple(names))
