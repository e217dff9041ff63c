"""Which source each row of a mixture is of: a pure function of (seed, row). Imports no torch.

A row's source is drawn by a keyed number of its own; which of the source's rows it is, is how many earlier rows were of
that source. These are counted in blocks, each once, so that any row is found at any time (a million rows in 0.1 s).

Shapes: S sources, n rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from fledge.data.keyed import GOLDEN
from fledge.data.permutation import keyed_numbers, mixed
from fledge.errors import DataError

BLOCK = 1 << 14  # rows


class Picks:
    """The sources of an endless sequence of rows. `chances(rows)` gives float64 [n, S], each source's part in a row's
    draw; `limits` int64 [S], the rows that a source has to give at most: once it is spent the others share its part."""

    def __init__(self, chances: Callable[[np.ndarray], np.ndarray], limits: np.ndarray, seed: int):
        self.chances, self.limits, self.key = chances, limits, keyed_numbers("mixture", seed)
        self.before = [np.zeros(len(limits), np.int64)]  # rows of each source before each block
        self.block = lru_cache(maxsize=4)(self.drawn)

    def rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows first..last-1: the source of each and which of its rows it is, int64 [n] twice. Raises DataError where
        every source that could be drawn is spent."""
        blocks = [self.block(number) for number in range(first // BLOCK, -(-last // BLOCK))]
        begin = first // BLOCK * BLOCK
        sources, places = (np.concatenate(both)[first - begin : last - begin] for both in zip(*blocks, strict=True))
        refuse_spent(sources, first)
        return sources, places

    def counts(self, n_rows: int) -> np.ndarray:
        """Rows of each source among the first `n_rows`, int64 [S]. Raises DataError as `rows` does."""
        whole, rest = divmod(n_rows, BLOCK)
        counts = self.counted_before(whole)
        if rest:
            counts = counts + np.bincount(self.rows(whole * BLOCK, n_rows)[0], minlength=len(counts))
        return counts

    def counted_before(self, number: int) -> np.ndarray:
        while len(self.before) <= number:
            sources, _ = self.block(len(self.before) - 1)
            refuse_spent(sources, (len(self.before) - 1) * BLOCK)
            self.before.append(self.before[-1] + np.bincount(sources, minlength=len(self.limits)))
        return self.before[number]

    def drawn(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The sources and places of a block's rows; -1 where no source is left."""
        rows = np.arange(number * BLOCK, (number + 1) * BLOCK)
        draws = (mixed(self.key + (rows + 1).astype(np.uint64) * GOLDEN) >> np.uint64(11)) * 2.0**-53
        chances, counts = self.chances(rows), self.counted_before(number).copy()
        sources, places = np.full(BLOCK, -1), np.full(BLOCK, -1)
        at = 0
        while at < BLOCK:
            left = chances[at:] * (counts < self.limits)
            picked, own = chosen(left, draws[at:], counts)
            spent = (picked < 0) | (own >= self.limits[picked])
            n = int(np.argmax(spent)) if spent.any() else BLOCK - at
            sources[at : at + n], places[at : at + n] = picked[:n], own[:n]
            counts += np.bincount(picked[:n], minlength=len(counts))
            at += n
            if n < len(picked) and picked[n] < 0:
                break
        return sources, places


def refuse_spent(sources: np.ndarray, first: int) -> None:
    if (sources < 0).any():
        raise DataError(
            f"mixture: expected a source to read row {first + int(np.argmax(sources < 0)):,} from, got none whose "
            "weight is above 0 and that has rows left; raise max_epochs, or train for fewer steps"
        )


def chosen(chances: np.ndarray, draws: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source that each draw falls on (-1: none has a chance), and which of the source's rows it is where `counts`
    came before, int64 [n] twice."""
    ends = np.cumsum(chances, 1)
    picked = (draws[:, None] * ends[:, -1:] >= ends).sum(1)  # no draw falls on a source without a chance
    picked = np.where(ends[:, -1] > 0, np.minimum(picked, chances.shape[1] - 1), -1)
    own = np.zeros(len(picked), np.int64)
    for source in range(chances.shape[1]):
        mine = picked == source
        own[mine] = counts[source] + np.arange(mine.sum())
    return picked, own
