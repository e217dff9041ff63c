"""`BlockPool`: which blocks of the cache are held, idle or free. Imports no torch.

A block is held by any number of documents; one that nobody holds is idle while its content may be of use again, and is
taken for another content when no free one is left, the least recently used first. Documents grow into consecutive
blocks where they can: a cache reads a run of blocks without a copy.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from fledge.engine.prefix import PrefixIndex


class BlockPool:
    """`n_blocks` blocks; every block is held, idle or free."""

    def __init__(self, n_blocks: int):
        self.n_blocks = n_blocks
        self.index = PrefixIndex()
        self.holders = [0] * n_blocks
        self.free = np.ones(n_blocks, bool)
        self.n_free = n_blocks
        self.idle: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self.growing: dict[int, int] = {}  # last block of a document -> how many it may still want behind it
        self.n_evicted = 0

    @property
    def n_available(self) -> int:
        """Blocks that can be taken now."""
        return self.n_free + len(self.idle)

    @property
    def n_held(self) -> int:
        return self.n_blocks - self.n_available

    def take(self, after: int | None, wanted: int) -> int:
        """A block to write, held once: the one behind `after` if that is free. `wanted`: how many the document may
        take from here on, this one included. There must be one available."""
        if after is not None:
            self.growing.pop(after, None)
        if after is not None and after + 1 < self.n_blocks and self.free[after + 1]:
            block = after + 1
        elif self.n_free:
            block = self.place(wanted)
        else:
            block = next(iter(self.idle))
            self.evict(block)
        self.free[block] = False
        self.n_free -= 1
        self.holders[block] = 1
        self.growing[block] = wanted - 1
        return block

    def place(self, wanted: int) -> int:
        """Where a document of `wanted` blocks begins: in the smallest stretch of free blocks that holds it, else in
        the largest, behind what its neighbour may still grow into."""
        edges = np.flatnonzero(np.diff(self.free.astype(np.int8), prepend=0, append=0)).tolist()
        stretches = []
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            reserved = self.growing.get(begin - 1, 0)
            stretches.append((begin + reserved, end) if begin + reserved < end else (end - 1, end))
        enough = [one for one in stretches if one[1] - one[0] >= wanted]
        chosen = min(enough, key=size) if enough else max(stretches, key=size)
        return chosen[0]

    def hold(self, block: int) -> None:
        """One document more holds a block that is known."""
        if not self.holders[block]:
            del self.idle[block]
        self.holders[block] += 1

    def release(self, block: int) -> None:
        """One document less holds it. What nobody holds stays for later if its content is known."""
        self.holders[block] -= 1
        self.growing.pop(block, None)
        if self.holders[block]:
            return
        if self.index.knows(block):
            self.idle[block] = None
        else:
            self.set_free(block)

    def evict(self, block: int) -> None:
        """Give an idle block's content up."""
        del self.idle[block]
        self.index.forget(block)
        self.set_free(block)
        self.n_evicted += 1

    def forget_all(self) -> None:
        """No content is good any more. Who holds blocks goes on holding them."""
        for block in list(self.idle):
            self.set_free(block)
        self.idle.clear()
        self.index = PrefixIndex()

    def set_free(self, block: int) -> None:
        self.free[block] = True
        self.n_free += 1


def size(stretch: tuple[int, int]) -> int:
    return stretch[1] - stretch[0]
