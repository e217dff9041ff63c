"""Batches of text windows in which the middle of some documents stands at their end: fill-in-the-middle.

Shapes: B rows, T tokens a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fledge.batch import Batch, join_rows
from fledge.data.batches import TextBatches, WindowReader
from fledge.data.infill import InfillConfig, infilled_shard
from fledge.data.shards import Shard
from fledge.text.tokenizer import Tokenizer


class InfillBatches:
    """`TextBatches` over what each epoch makes of the shard; every epoch has as many tokens."""

    def __init__(
        self,
        shard: Shard,
        tokenizer: Tokenizer,
        config: InfillConfig,
        row_tokens: int,
        rows: int,
        seed: int,
        cross_documents: bool = False,
    ):
        self.seen = lru_cache(maxsize=4)(lambda epoch: infilled_shard(shard, tokenizer, config, seed, epoch))
        self.windows = TextBatches(self.seen(0), row_tokens, rows, seed, cross_documents)
        self.row_tokens, self.rows, self.cross_documents = row_tokens, rows, cross_documents
        self.rows_per_epoch, self.tokens_per_epoch = self.windows.rows_per_epoch, self.windows.tokens_per_epoch

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""
        return self.rows_at(np.arange(index * self.rows, (index + 1) * self.rows))

    def rows_at(self, places: np.ndarray) -> Batch:
        """The rows at these places of the endless order, rising, int64 [B]."""
        starts, epochs = self.windows.starts(places), places // self.rows_per_epoch
        parts = [
            WindowReader(self.seen(epoch), self.cross_documents).read(starts[epochs == epoch], self.row_tokens)
            for epoch in np.unique(epochs).tolist()
        ]
        return join_rows(parts)
