"""Batches of a mixture: each row of the source that its number draws, in the source's own order.

Shapes: B rows, T tokens a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from fledge.batch import Batch, join_rows
from fledge.data.picks import Picks


class RowSource(Protocol):
    """The endless sequence of a shard's rows: what every objective makes of one."""

    rows: int

    @property
    def rows_per_epoch(self) -> int: ...

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of text that an epoch reads."""

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""

    def rows_at(self, places: np.ndarray) -> Batch:
        """The rows at these places, rising, int64 [B]."""


class MixedBatches:
    """`batch(index)` for any index: row r is row index·B + r of the mixture."""

    def __init__(self, sources: Sequence[RowSource], picks: Picks, rows: int, pad_id: int):
        self.sources, self.picks, self.rows, self.pad_id = sources, picks, rows, pad_id

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows. Raises DataError where every source is spent."""
        sources, places = self.picks.rows(index * self.rows, (index + 1) * self.rows)
        parts = [self.sources[number].rows_at(places[sources == number]) for number in np.unique(sources).tolist()]
        rows = np.argsort(sources, kind="stable")  # as the parts have them, one below the other
        return join_rows(parts, np.argsort(rows).tolist(), self.pad_id)
