"""Which conversation goes into which row: a plan per epoch. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fledge.data.permutation import KeyedPermutation


@dataclass(frozen=True)
class PackingPlan:
    """The rows of one epoch: row r holds the items `rows[r]`, side by side in that order."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the plan: equal plans are equal rows."""
        return hashlib.sha256(repr(self.rows).encode()).hexdigest()


def first_fit(lengths: Sequence[int], capacity: int, seed: int, epoch: int) -> PackingPlan:
    """Each item, in an order keyed by (seed, epoch), into the first row that still has room; then the rows in another
    keyed order, since the first ones are the fullest. Items are whole: none is longer than `capacity` tokens."""
    room = np.full(max(1, len(lengths)), capacity)
    rows: list[list[int]] = []
    for item in KeyedPermutation(max(1, len(lengths)), seed, epoch, "items").at(np.arange(len(lengths))).tolist():
        if lengths[item] > capacity:
            raise ValueError(f"item {item}: expected at most {capacity} tokens, got {lengths[item]}")
        # an untouched row follows the last one, so there always is room
        row = int(np.argmax(room[: len(rows) + 1] >= lengths[item]))
        if row == len(rows):
            rows.append([])
        rows[row].append(item)
        room[row] -= lengths[item]
    order = KeyedPermutation(max(1, len(rows)), seed, epoch, "rows").at(np.arange(len(rows)))
    return PackingPlan(tuple(tuple(rows[row]) for row in order.tolist()))


class PackedOrder:
    """The endless sequence of packed rows: epoch after epoch, each with a plan of its own and so its own length.

    `row(number)` is a pure function of (lengths, capacity, seed, number); plans are made as they are first needed.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, seed: int):
        self.plan = lru_cache(maxsize=8)(lambda epoch: first_fit(lengths, capacity, seed, epoch))
        self.ends = [0]  # ends[e]: rows in the epochs before e

    def row(self, number: int) -> tuple[int, ...]:
        """The items of global row `number`, counted from the first row of epoch 0."""
        epoch = self.epoch_of(number)
        return self.plan(epoch).rows[number - self.ends[epoch]]

    def epoch_of(self, number: int) -> int:
        while self.ends[-1] <= number:
            self.ends.append(self.ends[-1] + len(self.plan(len(self.ends) - 1).rows))
        return int(np.searchsorted(self.ends, number, "right")) - 1
