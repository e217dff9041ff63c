"""What a query may see: one rule for every mask. B rows, T query tokens, S key tokens.

`hidden_between` is by place alone (positions of one document), `visible` by Tokens: it knows padding, documents and
kinds, and is the reference that every faster way must equal.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from fledge.batch import GLOBAL, Tokens
from fledge.nn.config import BigBird, Fixed, Longformer, Pattern, Prefix, Strided


@dataclass(frozen=True)
class Sight:
    """What a mixer sees and how scores are formed: static, hashable. `scale` multiplies the scores, `dropout` is the
    share of the weights that a pass in training drops."""

    scale: float
    causal: bool = True
    window: int | None = None
    pattern: Pattern = None
    softcap: float | None = None
    dropout: float = 0.0


def visible(queries: Tokens, keys: Tokens, sight: Sight) -> Tensor:
    """bool [B, T, S]: the same document, neither padding, and what causality, window and pattern leave."""
    q_doc, k_doc = queries.doc[:, :, None], keys.doc[:, None, :]
    same = (q_doc == k_doc) & (q_doc >= 0)
    q_pos, k_pos = queries.pos[:, :, None], keys.pos[:, None, :]
    seen = by_place(q_pos, k_pos, sight)
    pattern = sight.pattern
    if isinstance(pattern, Longformer | Prefix):
        k_global = (kinds(keys) == GLOBAL)[:, None, :]
        seen = seen | k_global
        if isinstance(pattern, Longformer):
            seen = seen | (kinds(queries) == GLOBAL)[:, :, None]
    elif isinstance(pattern, BigBird):
        seen = seen & blocks_seen(pattern, queries, keys)
    return same & seen


def kinds(tokens: Tokens) -> Tensor:
    return torch.zeros_like(tokens.ids) if tokens.kind is None else tokens.kind


def by_place(q_pos: Tensor, k_pos: Tensor, sight: Sight) -> Tensor:
    """bool, broadcast of q_pos and k_pos (positions inside one document): causality, window, and patterns by place."""
    back = q_pos - k_pos
    seen = back >= 0 if sight.causal else torch.ones_like(back, dtype=torch.bool)
    pattern = sight.pattern
    if sight.window is not None:
        seen = seen & (back < sight.window if sight.causal else back.abs() <= sight.window // 2)
    if isinstance(pattern, Longformer):
        seen = seen & (back.abs() <= pattern.window // 2)
    if isinstance(pattern, Strided):
        seen = seen & ((back < pattern.stride) | (back % pattern.stride == 0))
    if isinstance(pattern, Fixed):
        same_block = q_pos // pattern.stride == k_pos // pattern.stride
        seen = seen & (same_block | (k_pos % pattern.stride >= pattern.stride - pattern.summary))
    return seen


def blocks_seen(pattern: BigBird, queries: Tokens, keys: Tokens) -> Tensor:
    """bool [B, T, S]: BigBird's blocks, counted in each row from its own document's length."""
    rows = []
    for b, length in enumerate(document_lengths(keys)):
        if length <= pattern.full_tokens:
            rows.append(torch.ones(queries.pos.shape[1], keys.pos.shape[1], dtype=torch.bool, device=keys.pos.device))
            continue
        table = block_table(pattern, max(1, -(-length // pattern.block))).to(keys.pos.device)
        last = table.shape[0] - 1
        q_block, k_block = ((t.pos[b] // pattern.block).clamp(max=last) for t in (queries, keys))
        rows.append(table[q_block][:, k_block])
    return torch.stack(rows)


def document_lengths(tokens: Tokens) -> list[int]:
    """Tokens of the one document in each row."""
    return (torch.where(tokens.doc >= 0, tokens.pos, -1).amax(1) + 1).tolist()


def first_block_weight(pattern: BigBird, queries: Tokens, keys: Tokens) -> Tensor:
    """float32 [B, 1, T, S]: log of how often a key counts under a fixed BigBird."""
    rows = []
    for b, length in enumerate(document_lengths(keys)):
        last = (length - 1) // pattern.block
        q_block, k_block = queries.pos[b] // pattern.block, keys.pos[b] // pattern.block
        often = ((q_block > 0) & (q_block < last))[:, None] & (k_block == 0)
        rows.append(often.float() * (math.log(1 + pattern.n_random) if length > pattern.full_tokens else 0.0))
    return torch.stack(rows)[:, None]


def block_table(pattern: BigBird, n_blocks: int) -> Tensor:
    """bool [N, N]: which block sees which."""
    seen = torch.zeros(n_blocks, n_blocks, dtype=torch.bool)
    for row, blocks in enumerate(blocks_of(pattern, n_blocks)):
        seen[row, list(blocks)] = True
    return seen


@lru_cache(maxsize=256)
def blocks_of(pattern: BigBird, n_blocks: int) -> tuple[tuple[int, ...], ...]:
    """The blocks that each block sees, ascending. The random ones are keyed by (seed, row): no generator state."""
    rows = []
    for row in range(n_blocks):
        if row in (0, n_blocks - 1):
            rows.append(tuple(range(n_blocks)))
            continue
        seen = {0, row - 1, row, row + 1, n_blocks - 1}
        if not pattern.fixed:
            free = [i for i in range(n_blocks) if i not in seen]
            free.sort(key=lambda i: hashlib.sha256(f"{pattern.seed}/{row}/{i}".encode()).digest())
            seen.update(free[: pattern.n_random])
        rows.append(tuple(sorted(seen)))
    return tuple(rows)
