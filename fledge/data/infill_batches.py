"""Batches of text windows in which the middle of some documents stands at their end: fill-in-the-middle.

Shapes: B rows, T tokens a row.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from fledge.batch import Batch, Tokens
from fledge.data.batches import TextBatches, WindowReader, layout_of
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

    def batch(self, index: int) -> Batch:
        """Global batch `index`: B = rows."""
        starts = self.windows.starts(index, 0, self.rows)
        epochs = np.arange(index * self.rows, (index + 1) * self.rows) // self.windows.rows_per_epoch
        parts = [
            WindowReader(self.seen(epoch), self.cross_documents).read(starts[epochs == epoch], self.row_tokens)
            for epoch in np.unique(epochs).tolist()
        ]
        return parts[0] if len(parts) == 1 else one_batch(parts)


def one_batch(parts: list[Batch]) -> Batch:
    """Batches of windows, one below the other."""
    ids, pos, doc = (torch.cat([getattr(part.tokens, name) for part in parts]) for name in ("ids", "pos", "doc"))
    targets, weight = torch.cat([part.targets for part in parts]), torch.cat([part.weight for part in parts])
    names = tuple(name for part in parts for name in part.sample_ids)
    return Batch(Tokens(ids, pos, doc), targets, weight, layout_of(pos.numpy()), names)
