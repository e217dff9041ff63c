"""Virtual tokens: learnt ones that stand before the tokens of every document, at its positions 0..P-1.

B rows, T tokens, P virtual tokens, E embedding width, L layers, K key/value heads, C head channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.batch import PADDING, Layout, OneDocument, Packed, Padded, Tokens
from fledge.nn.adapter import Adapter


class VirtualTokens(Adapter, ABC):
    """What stands before every document: `n_tokens` embeddings, or keys and values in each layer."""

    n_tokens: int

    @abstractmethod
    def embeddings(self, width: int) -> Tensor:
        """Rows [P, E] that the first layer reads."""

    @abstractmethod
    def keys_and_values(self) -> Tensor | None:
        """[L, 2, P, K, C] that attention sees of them; None: those that the layers make of the embeddings."""


class PromptTokens(VirtualTokens):
    """Embeddings (prompt tuning: Lester et al. 2021, arXiv 2104.08691). `rows` [P, E]."""

    def __init__(self, n_tokens: int, width: int):
        super().__init__()
        self.n_tokens, self.rows = n_tokens, nn.Parameter(torch.empty(n_tokens, width))

    def embeddings(self, width: int) -> Tensor:
        return self.rows

    def keys_and_values(self) -> None:
        return None


class PrefixTokens(VirtualTokens):
    """Keys, turned already, and values in each layer (prefix tuning: Li & Liang 2021, arXiv 2101.00190). `shape` is
    (L, K, C). With `hidden` they are tanh(rows · W + b) · W' + b' (§4.3), else `rows` [P, L · 2 · K · C] themselves."""

    def __init__(self, n_tokens: int, shape: tuple[int, int, int], hidden: int = 0):
        super().__init__()
        n_layers, heads, channels = shape
        size = n_layers * 2 * heads * channels
        self.n_tokens, self.shape = n_tokens, shape
        self.rows = nn.Parameter(torch.empty(n_tokens, heads * channels if hidden else size))
        self.inward = nn.Linear(heads * channels, hidden) if hidden else None
        self.outward = nn.Linear(hidden, size) if hidden else None

    def embeddings(self, width: int) -> Tensor:
        return self.rows.new_zeros(self.n_tokens, width)

    def table(self) -> Tensor:
        """[P, L · 2 · K · C]."""
        if self.inward is None or self.outward is None:
            return self.rows
        return self.outward(torch.tanh(self.inward(self.rows)))

    def keys_and_values(self) -> Tensor:
        n_layers, heads, channels = self.shape
        return self.table().view(self.n_tokens, n_layers, 2, heads, channels).permute(1, 2, 0, 3, 4)


@dataclass(frozen=True)
class Prefix:
    """Keys and values of virtual tokens [L, 2, P, K, C]. `place` int64 [B, T]: which of them a token of the pass is, -1
    for others; None where the pass has no virtual tokens and a cache none of theirs."""

    keys_and_values: Tensor
    place: Tensor | None

    def put(self, k_BTKC: Tensor, v_BTKC: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a pass, those of virtual tokens put in."""
        assert self.place is not None
        here, place = (self.place >= 0)[:, :, None, None], self.place.clamp(min=0)
        own = self.keys_and_values[layer].flatten(
            2
        )  # an embedding's gradient is summed in one order, an index's is not
        k, v = (F.embedding(place, table).unflatten(-1, k_BTKC.shape[2:]) for table in own)
        return torch.where(here, k.to(k_BTKC.dtype), k_BTKC), torch.where(here, v.to(v_BTKC.dtype), v_BTKC)

    def ahead(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [K, P, C] before those of a cache."""
        k, v = self.keys_and_values[layer].transpose(1, 2)
        return k, v


@dataclass(frozen=True)
class Noted(Prefix):
    """Notes the keys and values of a pass, [2, B, T, K, C] by layer, and changes nothing."""

    found: dict[int, Tensor] = field(default_factory=dict)

    def put(self, k_BTKC: Tensor, v_BTKC: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.found[layer] = torch.stack((k_BTKC, v_BTKC))
        return k_BTKC, v_BTKC


@dataclass(frozen=True)
class Longer:
    """Documents with virtual tokens before each. `source` int64 [B, T']: of all tokens of the batch, flattened, the
    one that stands there (of a virtual one the document's first). `place` as in `Prefix`. `back` int64 [B · T]: where
    the tokens have gone. A virtual token's kind is 0."""

    tokens: Tokens
    layout: Layout
    source: Tensor
    place: Tensor
    back: Tensor


def lengthened(tokens: Tokens, layout: Layout, n_virtual: int) -> Longer:
    """`tokens` with `n_virtual` virtual ones before every document, positions counted on behind them. Padding that a
    packed batch has between its documents gets some too, which nobody sees."""
    n_rows, row_tokens = tokens.ids.shape
    spans = document_spans(layout, n_rows, row_tokens)
    longest = max(sum(n_virtual + end - start for start, end in row) for row in spans)
    owner = torch.full((n_rows, longest), -1, dtype=torch.int64)
    place = torch.full_like(owner, -1)
    back, bounds = torch.empty(n_rows * row_tokens, dtype=torch.int64), [0]
    for b, row in enumerate(spans):
        at = 0
        for start, end in row:
            first, middle, last = b * row_tokens + start, at + n_virtual, at + n_virtual + end - start
            place[b, at:middle] = torch.arange(n_virtual)
            owner[b, at:middle] = first
            owner[b, middle:last] = torch.arange(first, first + end - start)
            back[first : first + end - start] = torch.arange(b * longest + middle, b * longest + last)
            at = last
            bounds.append(b * longest + at)
        bounds += [(b + 1) * longest] if at < longest else []
    device = tokens.ids.device
    owner, place = owner.to(device), place.to(device)
    there, own = owner >= 0, owner.clamp(min=0)
    doc = torch.where(there, tokens.doc.flatten()[own], PADDING)
    pos = torch.where(place >= 0, place, torch.where(there, tokens.pos.flatten()[own] + n_virtual, 0))
    kind = None if tokens.kind is None else torch.where(there & (place < 0), tokens.kind.flatten()[own], 0)
    ids = torch.where(place >= 0, 0, torch.where(there, tokens.ids.flatten()[own], 0))
    return Longer(Tokens(ids, pos, doc, kind), longer_layout(layout, n_virtual, bounds), own, place, back.to(device))


def document_spans(layout: Layout, n_rows: int, row_tokens: int) -> list[list[tuple[int, int]]]:
    """Of each row the (start, end) of its documents, which cover it."""
    if isinstance(layout, OneDocument | Padded):
        return [[(0, row_tokens)] for _ in range(n_rows)]
    assert isinstance(layout, Packed), "cached documents have their prefix in the context"
    spans: list[list[tuple[int, int]]] = [[] for _ in range(n_rows)]
    for start, end in zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False):
        row = start // row_tokens
        spans[row].append((start - row * row_tokens, end - row * row_tokens))
    return spans


def longer_layout(layout: Layout, n_virtual: int, bounds: list[int]) -> Layout:
    if isinstance(layout, Padded):
        return Padded(tuple(length + n_virtual for length in layout.lengths))
    if isinstance(layout, Packed):
        return Packed(tuple(bounds), max(b - a for a, b in zip(bounds, bounds[1:], strict=False)))
    return layout
