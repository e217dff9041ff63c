"""Batches of preferences: a row holds the answers to one prompt side by side, each a document with its prompt.

So rows are sliced into micro-batches without parting a pair. Shapes: B rows, T tokens a row, S answers of a row;
document s of a row is its answer s, padding is document -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fledge.batch import Batch, Packed
from fledge.data.batches import RenderedConversation
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.errors import DataError


@dataclass(frozen=True)
class Answer:
    """A conversation's `ids` and `trained` (which of them are the answer's own): [n] each."""

    ids: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class Item:
    """One row of the data: its answers, and its number in the file as people count."""

    number: int
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Fitted:
    """The items that fit, with how many were cut or left out (too long, or the same answer twice)."""

    items: list[Item]
    n_cut: int
    n_too_long: int
    n_same: int


def fitted(rows: Sequence[Sequence[RenderedConversation]], most_tokens: int, cut: bool) -> Fitted:
    """Rows whose answers have at most `most_tokens` each. Longer ones are cut at their end, or with `cut` false left
    out whole; a row of which the cut leaves an answer without a token, or the same answers, is left out too."""
    items, n_cut, n_too_long, n_same = [], 0, 0, 0
    for number, row in enumerate(rows, 1):
        long = any(len(one.ids) > most_tokens for one in row)
        answers = tuple(answer_of(one, most_tokens) for one in row)
        same = len(answers) > 1 and all(same_ids(answers[0], one) for one in answers[1:])
        if long and (not cut or same or not all(one.trained[1:].any() for one in answers)):
            n_too_long += 1
        elif same:
            n_same += 1
        else:
            n_cut += long
            items.append(Item(number, answers))
    return Fitted(items, n_cut, n_too_long, n_same)


def answer_of(one: RenderedConversation, most_tokens: int) -> Answer:
    return Answer(np.array(one.ids[:most_tokens], np.int64), np.array(one.trained[:most_tokens], bool))


def same_ids(a: Answer, b: Answer) -> bool:
    return bool(np.array_equal(a.ids, b.ids))


class PreferenceBatches(KeyedBatches):
    """Batches over items, each visited once an epoch. `answers`: which of an item's stand in a row; `first`: the number
    that `Batch.items` gives the first. With `scored` an answer is read whole, for a head on its last token; else it is
    n - 1 places, each with the next token as its target. Raises DataError without items."""

    def __init__(
        self,
        items: Sequence[Item],
        rows: int,
        seed: int,
        pad_id: int = 0,
        answers: slice = slice(None),
        scored: bool = False,
        first: int = 0,
    ):
        if not items:
            raise DataError("preferences: expected at least one that fits, got none; raise train.row_tokens")
        super().__init__(len(items), sum(len(one.ids) for item in items for one in item.answers[answers]), rows, seed)
        self.items, self.pad_id, self.answers, self.scored, self.first = items, pad_id, answers, scored, first

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        return self.of([number for _, number in chosen], self.answers)

    def of(self, numbers: Sequence[int], answers: slice) -> Batch:
        """The rows of these items, with these of their answers."""
        items = [self.items[number] for number in numbers]
        rows = [[self.piece(one) for one in item.answers[answers]] for item in items]
        batch = laid(rows, 0, self.pad_id, tuple(f"preference {item.number}" for item in items))
        if isinstance(batch.layout, Packed):
            longest = max(len(piece.ids) for row in rows for piece in row)
            batch = replace(batch, layout=short_padding(batch.layout, longest))
        return replace(batch, items=torch.tensor(numbers, dtype=torch.int64) + self.first)

    def piece(self, one: Answer) -> Piece:
        if self.scored:
            return Piece(one.ids, one.ids, one.trained.astype(np.float32))
        return Piece(one.ids[:-1], one.ids[1:], one.trained[1:].astype(np.float32))


def short_padding(layout: Packed, longest: int) -> Packed:
    """The same documents, with padding in pieces of at most `longest`: no document is then longer than an answer."""
    bounds = [0]
    for edge in layout.cu_seqlens[1:]:
        while edge - bounds[-1] > longest:
            bounds.append(bounds[-1] + longest)
        bounds.append(edge)
    return Packed(tuple(bounds), longest)
