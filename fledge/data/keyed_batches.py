"""Rows that are made when they are asked for, laid side by side as a `Batch`: what every corrupted objective shares.

Shapes: B rows, T tokens a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fledge.batch import PADDING, Batch, Layout, OneDocument, Packed, Padded, Tokens
from fledge.data.permutation import KeyedPermutation


@dataclass(frozen=True)
class Piece:
    """One document of a row: `ids`, `targets`, `kind` int64 [n], `weight` float32 [n]."""

    ids: np.ndarray
    targets: np.ndarray
    weight: np.ndarray
    kind: np.ndarray | None = None


class KeyedBatches(ABC):
    """The endless sequence of batches over the rows of an epoch, each of which is visited once in an order of its own.

    A subclass says in `made` what row `number` is in `epoch`."""

    def __init__(self, rows_per_epoch: int, tokens_per_epoch: int, rows: int, seed: int):
        self.rows_per_epoch, self.tokens_per_epoch = rows_per_epoch, tokens_per_epoch  # tokens of text
        self.rows, self.seed = rows, seed
        self.order = lru_cache(maxsize=4)(lambda epoch: KeyedPermutation(rows_per_epoch, seed, epoch))

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""
        return self.rows_at(np.arange(index * self.rows, (index + 1) * self.rows))

    def rows_at(self, places: np.ndarray) -> Batch:
        """The rows at these places of the endless order, int64 [B]."""
        epochs, places = np.divmod(places, self.rows_per_epoch)
        return self.made([
            (int(epoch), int(self.order(int(epoch)).at(np.array([place]))[0]))
            for epoch, place in zip(epochs, places, strict=True)
        ])  # fmt: skip

    @abstractmethod
    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        """The batch of these rows, each an (epoch, number)."""


class EveryRow(Sequence[Batch]):
    """Every row once, in order, as it is in epoch 0: batches for validation, whose corruption never changes."""

    def __init__(self, batches: KeyedBatches):
        self.batches = batches

    def __len__(self) -> int:
        return -(-self.batches.rows_per_epoch // self.batches.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Batch
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first = index * self.batches.rows
        return self.batches.made(
            [(0, n) for n in range(first, min(first + self.batches.rows, self.batches.rows_per_epoch))]
        )

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))


def laid(rows: Sequence[Sequence[Piece]], row_tokens: int, pad_id: int, names: tuple[str, ...] = ()) -> Batch:
    """Rows of pieces as a batch of T = `row_tokens`, or of the longest row for 0. One piece in every row gives
    `Padded`, or `OneDocument` where all are full; else `Packed`, the rest of a row a document of its own with id -1."""
    longest = max(sum(len(piece.ids) for piece in row) for row in rows)
    n_tokens = row_tokens or longest
    assert longest <= n_tokens, f"row of {longest} tokens in {n_tokens}"
    shape = (len(rows), n_tokens)
    ids_BT, targets_BT = np.full(shape, pad_id, np.int64), np.full(shape, pad_id, np.int64)
    pos_BT, doc_BT, kind_BT = np.zeros(shape, np.int64), np.full(shape, PADDING, np.int64), np.zeros(shape, np.int64)
    weight_BT = np.zeros(shape, np.float32)
    bounds = [0]
    for b, row in enumerate(rows):
        at = 0
        for number, piece in enumerate(row):
            end = at + len(piece.ids)
            ids_BT[b, at:end], targets_BT[b, at:end], weight_BT[b, at:end] = piece.ids, piece.targets, piece.weight
            pos_BT[b, at:end], doc_BT[b, at:end] = np.arange(end - at), number
            if piece.kind is not None:
                kind_BT[b, at:end] = piece.kind
            bounds.append(b * n_tokens + end)
            at = end
        if at < n_tokens:
            bounds.append((b + 1) * n_tokens)
    kinds = any(piece.kind is not None for row in rows for piece in row)
    kind_or_none = torch.from_numpy(kind_BT) if kinds else None
    tokens = Tokens(torch.from_numpy(ids_BT), torch.from_numpy(pos_BT), torch.from_numpy(doc_BT), kind_or_none)
    layout: Layout = Packed(tuple(bounds), int(np.diff(bounds).max()))
    if all(len(row) == 1 for row in rows):
        lengths = tuple(len(row[0].ids) for row in rows)
        layout = OneDocument() if min(lengths) == n_tokens else Padded(lengths)
    return Batch(tokens, torch.from_numpy(targets_BT), torch.from_numpy(weight_BT), layout, names)
