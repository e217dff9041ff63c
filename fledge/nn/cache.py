"""The cache of decoding: a slot holds one document's keys and values, or recurrent states, layer by layer.

S slots, K key/value heads, L positions, C head channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]


class KeyValueCache:
    """`keys[layer]` and `values[layer]`: [S, K, L, C]. Which positions of a slot are real is the caller's to know.

    `heads`: (key/value heads, channels) a layer; None for a layer that keeps a state of fixed size instead.
    """

    def __init__(
        self,
        heads: tuple[tuple[int, int] | None, ...],
        n_slots: int,
        positions: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shapes = [(n_slots, one[0], positions, one[1]) if one else (0,) for one in heads]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.states: dict[tuple[int, int], tuple[int, State]] = {}
        self.sources: dict[object, tuple[Tensor, Tensor, Tensor]] = {}
        """By cross-attention: what the encoder gave, and keys and values made of it (see CrossAttention)."""
        self.n_slots, self.positions = n_slots, positions

    def write(self, layer: int, slot: int, start: int, k_TKC: Tensor, v_TKC: Tensor) -> tuple[Tensor, Tensor]:
        """Put T tokens at `start` of a slot; gives views of its keys and values up to them, [K, start + T, C]."""
        end = start + k_TKC.shape[0]
        keys, values = self.keys[layer][slot], self.values[layer][slot]
        keys[:, start:end] = k_TKC.transpose(0, 1)
        values[:, start:end] = v_TKC.transpose(0, 1)
        return keys[:, :end], values[:, :end]

    def state(self, layer: int, slot: int, start: int) -> State | None:
        """The recurrent state after `start` tokens of a slot's document, or None if it isn't known."""
        known = self.states.get((layer, slot))
        return known[1] if known is not None and start and known[0] == start else None

    def keep_state(self, layer: int, slot: int, end: int, state: State) -> None:
        """Remember the state after `end` tokens."""
        self.states[layer, slot] = (end, state)
