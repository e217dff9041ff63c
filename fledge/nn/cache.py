"""The cache of decoding: blocks of keys and values, which a document's block table strings together, layer by layer.

K key/value heads, P positions of all blocks, C head channels, T new tokens, S tokens read. Block b holds the positions
b * BLOCK_TOKENS and on; token t of a document stands in block `table[t // BLOCK_TOKENS]` of its table. Recurrent states
of fixed size belong to a sequence, a running number, and not to blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_TOKENS = 16

State = tuple[Tensor, Tensor]
Table = tuple[int, ...]


class KeyValueCache:
    """`keys[layer]` and `values[layer]`: [K, P, C]. Which positions of a table are real is the caller's to know.

    `heads`: (key/value heads, channels) a layer; None for a layer that keeps a state of fixed size instead.
    `context_tokens`: the longest document. With `int8`, keys and values are int8 and `key_scales[layer]`,
    `value_scales[layer]` float32 [K, P]: max|x| / 127 of each token and head, fixed when it is written.
    """

    def __init__(
        self,
        heads: tuple[tuple[int, int] | None, ...],
        n_blocks: int,
        context_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        int8: bool = False,
    ):
        self.n_blocks, self.context_tokens, self.dtype, self.int8 = n_blocks, context_tokens, dtype, int8
        positions = n_blocks * BLOCK_TOKENS
        shapes = [(one[0], positions, one[1]) if one else (0,) for one in heads]
        kept = torch.int8 if int8 else dtype
        self.keys = [torch.zeros(shape, dtype=kept, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=kept, device=device) for shape in shapes]
        self.key_scales = [torch.zeros(shape[:2], device=device) if int8 else None for shape in shapes]
        self.value_scales = [torch.zeros(shape[:2], device=device) if int8 else None for shape in shapes]
        self.states: dict[tuple[int, int], tuple[tuple[int, State | None], tuple[int, State]]] = {}
        self.sources: dict[bytes, dict[object, State]] = {}
        """By a source's name: its keys and values, [K, S, C] each, for every cross-attention (see keep_source)."""

    def whole_table(self, number: int) -> Table:
        """The blocks of document `number` where every document has room for its whole context."""
        n = blocks_of(self.context_tokens)
        return tuple(range(number * n, (number + 1) * n))

    def write(self, layer: int, table: Table, start: int, k_TKC: Tensor, v_TKC: Tensor) -> None:
        """Put T tokens at positions start.. of a document."""
        places = self.places(table, start, start + k_TKC.shape[0])
        for kept, scales, new in (
            (self.keys[layer], self.key_scales[layer], k_TKC.transpose(0, 1)),
            (self.values[layer], self.value_scales[layer], v_TKC.transpose(0, 1)),
        ):
            if scales is not None:
                new, scales[:, places] = quantized(new)
            kept[:, places] = new

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Have the second block of each pair hold what the first does."""
        if not pairs:
            return
        given, taking = torch.tensor(pairs, device=self.keys[0].device).unbind(1)
        for kept in (*self.keys, *self.values, *self.key_scales, *self.value_scales):
            if kept is not None and kept.dim() > 1:  # a layer with a state of fixed size has no blocks
                blocks = kept.unflatten(1, (-1, BLOCK_TOKENS))
                blocks[:, taking] = blocks[:, given]

    def read(self, layer: int, table: Table, straight: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions start..end of a document, [K, S, C]: views where the blocks are consecutive,
        copies elsewhere. `straight`: the entry from which on those of the table are (see Cached)."""
        first, last = start // BLOCK_TOKENS, blocks_of(end)
        if straight <= first:
            begin = table[first] * BLOCK_TOKENS + start % BLOCK_TOKENS
            places: slice | Tensor = slice(begin, begin + end - start)
        else:
            places = torch.tensor(table[first:last], device=self.keys[layer].device)
        inside = slice(start - first * BLOCK_TOKENS, end - first * BLOCK_TOKENS)
        keys = self.fetch(self.keys[layer], self.key_scales[layer], places, inside)
        values = self.fetch(self.values[layer], self.value_scales[layer], places, inside)
        return keys, values

    def fetch(self, kept: Tensor, scales: Tensor | None, places: slice | Tensor, inside: slice) -> Tensor:
        """Positions `places`, or of the blocks `places` the positions `inside`, as numbers of the model."""
        if isinstance(places, slice):
            found = kept[:, places]
            return found if scales is None else found.to(self.dtype) * scales[:, places, None].to(self.dtype)
        found = gathered(kept, places)[:, inside]
        return (
            found if scales is None else found.to(self.dtype) * gathered(scales, places)[:, inside, None].to(self.dtype)
        )

    def places(self, table: Table, start: int, end: int) -> slice | Tensor:
        """Where positions start..end of a document stand."""
        first, last = start // BLOCK_TOKENS, blocks_of(end)
        blocks = table[first:last]
        if blocks == tuple(range(blocks[0], blocks[0] + len(blocks))):
            begin = blocks[0] * BLOCK_TOKENS + start % BLOCK_TOKENS
            return slice(begin, begin + end - start)
        inside = torch.arange(BLOCK_TOKENS)
        every = (torch.tensor(blocks)[:, None] * BLOCK_TOKENS + inside).flatten()
        return every[start - first * BLOCK_TOKENS : end - first * BLOCK_TOKENS]

    def state(self, layer: int, sequence: int, start: int) -> State | None:
        """The recurrent state after `start` tokens of a sequence, or None if it isn't known or there is none yet."""
        for end, state in reversed(self.states.get((layer, sequence), ())):
            if end == start and start:
                return state
        return None

    def keep_state(self, layer: int, sequence: int, start: int, end: int, state: State) -> None:
        """Remember the state after `end` tokens, and the one it came from, so that tokens start..end may be computed
        again."""
        self.states[layer, sequence] = ((start, self.state(layer, sequence, start)), (end, state))

    def clear(self) -> None:
        """Forget states and sources; what blocks hold is the caller's to forget."""
        self.states.clear()
        self.sources.clear()


def blocks_of(tokens: int) -> int:
    """Blocks that so many tokens fill or begin."""
    return -(-tokens // BLOCK_TOKENS)


def gathered(kept: Tensor, blocks: Tensor) -> Tensor:
    """The positions of some blocks side by side: [K, P, ...] -> [K, B * BLOCK_TOKENS, ...]."""
    return kept.unflatten(1, (-1, BLOCK_TOKENS)).index_select(1, blocks).flatten(1, 2)


def quantized(x_KTC: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [K, T, C] and the float32 scale of each token and head [K, T]: symmetric, the largest becomes ±127."""
    x = x_KTC.float()
    scale = x.abs().amax(-1) / 127
    return torch.round(x / torch.where(scale == 0, 1, scale)[..., None]).to(torch.int8), scale
