"""How many pairs of query and key attention compares in a document, from the config alone.

A test counts the same pairs in `fledge.nn.visibility.visible`. No token is global here: how many are, the data decides.
"""

from __future__ import annotations

from fledge.nn.config import BigBird, Fixed, Heads, Kernelised, LayerConfig, Longformer, LowRank, Strided
from fledge.nn.linear_attention import CHUNK
from fledge.nn.visibility import blocks_of


def keys_per_query(layer: LayerConfig, n_tokens: int, causal: bool) -> float:
    """Keys that a query of a document of `n_tokens` costs, on average, at two products of `head_channels` each.

    A causal pair counts with its mirror image, so that full attention costs all `n_tokens`, as in the published formula
    (Chowdhery et al. 2022, appendix B), and a window its share of them. What forms no scores is told in the same unit.
    """
    mixer = layer.mixer
    if isinstance(mixer, Kernelised):
        return mixer.head_channels + (in_chunks(n_tokens) / n_tokens if causal else 0)
    if isinstance(mixer, LowRank):
        return mixer.rank * (1 + mixer.n_kv_heads / mixer.n_heads)  # its scores, and mixing keys and values
    pairs = visible_pairs(layer, n_tokens, causal)
    return (2 * pairs - n_tokens if causal else pairs) / n_tokens


def visible_pairs(layer: LayerConfig, n_tokens: int, causal: bool) -> int:
    """Pairs that causality, window and pattern leave of a document."""
    pattern = layer.pattern
    if isinstance(pattern, Strided):
        return within(n_tokens, pattern.stride - 1) + whole_strides(n_tokens, pattern.stride)
    if isinstance(pattern, Fixed):
        blocks, rest = divmod(n_tokens, pattern.stride)
        own = blocks * within(pattern.stride, pattern.stride) + within(rest, rest)
        return own + min(pattern.summary, pattern.stride) * whole_strides(n_tokens, pattern.stride)
    if isinstance(pattern, BigBird) and n_tokens > pattern.full_tokens:
        return block_pairs(pattern, n_tokens)
    if causal:
        return within(n_tokens, (layer.window or n_tokens) - 1)
    window = pattern.window if isinstance(pattern, Longformer) else layer.window
    side = within(n_tokens, n_tokens if window is None else window // 2)
    return 2 * side - n_tokens


def within(n_tokens: int, reach: int) -> int:
    """Pairs of a query and a key at most `reach` positions before it, itself included."""
    reach = min(reach, max(0, n_tokens - 1))
    return n_tokens * (reach + 1) - reach * (reach + 1) // 2


def whole_strides(n_tokens: int, stride: int) -> int:
    """Σ position // stride."""
    blocks, rest = divmod(n_tokens, stride)
    return stride * blocks * (blocks - 1) // 2 + blocks * rest


def block_pairs(pattern: BigBird, n_tokens: int) -> int:
    rows = blocks_of(pattern, -(-n_tokens // pattern.block))
    sizes = [min(pattern.block, n_tokens - row * pattern.block) for row in range(len(rows))]
    return sum(size * sum(sizes[seen] for seen in row) for size, row in zip(sizes, rows, strict=True))


def in_chunks(n_tokens: int) -> int:
    """Pairs that causal kernelised attention compares inside its chunks."""
    chunks, rest = divmod(n_tokens, CHUNK)
    return chunks * CHUNK**2 + rest**2


def inner(mixer: Heads) -> int:
    return mixer.n_heads * mixer.head_channels
