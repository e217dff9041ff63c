"""What rotary frequencies have to do with a document's length: those of dynamic NTK and LongRoPE go by it, so that two
documents of one batch may turn otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TypeAlias

from fledge.batch import Layout, Packed, Padded
from fledge.nn.config import Rope, StackConfig

Span: TypeAlias = tuple[int, int, int]
"""Where a document begins and ends in the flattened tokens of a batch, padding of its row included; its tokens."""


def rotary(stack: StackConfig) -> Iterator[tuple[Rope, int]]:
    """The distinct rotary positions of a stack with the channels of a head."""
    seen = {(layer.position, layer.mixer.head_channels) for layer in stack.layers if isinstance(layer.position, Rope)}
    yield from seen  # type: ignore[misc]


def depends_on_length(position: Rope) -> bool:
    return position.scaling is not None and position.scaling.kind in ("dynamic", "longrope")


def regime(position: Rope, length: int) -> int:
    """What of a document's length the frequencies depend on."""
    scaling = position.scaling
    if scaling is None or not depends_on_length(position):
        return 0
    if scaling.kind == "longrope":
        return int(length > scaling.original_tokens)
    return max(length, scaling.original_tokens)


def spans_by_length(stack: StackConfig, layout: Layout, row_tokens: int) -> list[Span]:
    """The spans of a batch's documents, where rotary frequencies depend on a document's length and the lengths tell
    them apart; else none, as one table does for all."""
    positions = [position for position, _ in rotary(stack) if depends_on_length(position)]
    if not positions:
        return []
    if isinstance(layout, Padded):
        rows = enumerate(layout.lengths)
        spans = [(row * row_tokens, (row + 1) * row_tokens, n_tokens) for row, n_tokens in rows]
    elif isinstance(layout, Packed):
        spans = [(start, stop, stop - start) for start, stop in pairwise(layout.cu_seqlens)]
    else:
        return []
    kinds = {tuple(regime(position, n_tokens) for position in positions) for _, _, n_tokens in spans}
    return spans if len(kinds) > 1 else []
