"""The key/value cache of decoding: a slot holds one document's keys and values, layer by layer.

S slots, K key/value heads, L positions, C head channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """`keys[layer]` and `values[layer]`: [S, K, L, C]. Which positions of a slot are real is the caller's to know."""

    def __init__(
        self,
        n_layers: int,
        n_slots: int,
        n_kv_heads: int,
        positions: int,
        channels: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (n_slots, n_kv_heads, positions, channels)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.n_slots, self.positions = n_slots, positions

    def write(self, layer: int, slot: int, start: int, k_TKC: Tensor, v_TKC: Tensor) -> tuple[Tensor, Tensor]:
        """Put T tokens at `start` of a slot; gives views of its keys and values up to them, [K, start + T, C]."""
        end = start + k_TKC.shape[0]
        keys, values = self.keys[layer][slot], self.values[layer][slot]
        keys[:, start:end] = k_TKC.transpose(0, 1)
        values[:, start:end] = v_TKC.transpose(0, 1)
        return keys[:, :end], values[:, :end]
