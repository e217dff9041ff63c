"""The types that flow from data through layers to the loop: `Tokens`, `Layout`, `Batch`, `Loss`.

Shapes: B rows, T tokens a row, D width. Position and document id are data; `Layout` is static, hashable and made on
the host by whoever made the batch, so that a kernel is chosen without looking at a tensor's values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = -1  # document id of a token that is not there
GLOBAL = 1  # kind of a token that patterns treat as global, or as part of a prefix


@dataclass(frozen=True)
class Tokens:
    """Token ids with their place. `ids`, `pos`, `doc`: int64 [B, T]; `doc` -1 is padding.

    `kind`: int64 [B, T], a small integer per token (segment, prefix, global mark). `embeds`: [B, T, D], rows that
    replace the embedding's. Positions count from 0 inside each document.
    """

    ids: Tensor
    pos: Tensor
    doc: Tensor
    kind: Tensor | None = None
    embeds: Tensor | None = None

    def to(self, device: torch.device) -> Tokens:
        moved = (None if t is None else t.to(device) for t in (self.ids, self.pos, self.doc, self.kind, self.embeds))
        return Tokens(*moved)  # type: ignore[arg-type]


@dataclass(frozen=True)
class OneDocument:
    """Each row is one whole document of T tokens: no padding, no boundary."""


@dataclass(frozen=True)
class Padded:
    """Row b holds one document in its first `lengths[b]` tokens; the rest is padding."""

    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Documents side by side. Over the flattened B·T tokens document i is `cu_seqlens[i]:cu_seqlens[i+1]`.

    `longest` is the longest document. No document crosses a row. Padding counts as documents of its own
    (doc id -1 in Tokens); its outputs are never read.
    """

    cu_seqlens: tuple[int, ...]
    longest: int


@dataclass(frozen=True)
class Cached:
    """Decoding: row b's T tokens stand at positions `starts[b]…` of the document whose blocks of the cache are
    `tables[b]`, in order, up to the last of these tokens.

    Only the first `counts[b]` tokens of the row are real; the rest is padding, written nowhere. `sequences[b]` names
    the document where something is kept for it and not for its blocks (recurrent states). `sources[b]` names the source
    that a decoder with an encoder reads in row b, as the cache keeps it; () for a decoder alone.
    """

    tables: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    counts: tuple[int, ...]
    sequences: tuple[int, ...]
    sources: tuple[bytes, ...] = ()

    @cached_property
    def straight(self) -> tuple[int, ...]:
        """For each table the entry from which on its blocks are consecutive."""
        return tuple(straight_from(table) for table in self.tables)


def straight_from(table: tuple[int, ...]) -> int:
    if table == tuple(range(table[0], table[0] + len(table))):
        return 0
    entry = len(table) - 1
    while table[entry - 1] == table[entry] - 1:
        entry -= 1
    return entry


def document_lengths(layout: Packed) -> list[int]:
    """Tokens of each document, in order."""
    return [end - start for start, end in zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False)]


Layout: TypeAlias = OneDocument | Padded | Packed | Cached


@dataclass(frozen=True)
class Batch:
    """One global batch: `tokens`; `targets` int64 [B, T] (the id each position must predict); `weight` float32 [B, T]
    (0: not trained on); `layout`; `sample_ids`, one name a row, for error messages. `source`: what an encoder reads,
    where `tokens` are the decoder's; as many rows. `answers`: what a head must give each row:
    int64 [B] a label, float32 [B] a number, [B, labels] several, int64 [B, 2] places. `items` int64 [B]: which
    item of the data each row is, for what is kept beside it. `columns`: what else a loss reads of each token, by name,
    float32 [B, T]."""

    tokens: Tokens
    targets: Tensor
    weight: Tensor
    layout: Layout
    sample_ids: tuple[str, ...] = ()
    source: tuple[Tokens, Layout] | None = None
    answers: Tensor | None = None
    items: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Tokens that a model computes, padding left out: those of the source too."""
        there = int((self.tokens.doc != PADDING).sum())
        return there + (int((self.source[0].doc != PADDING).sum()) if self.source is not None else 0)

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            tokens=self.tokens.to(device),
            targets=self.targets.to(device),
            weight=self.weight.to(device),
            source=None if self.source is None else (self.source[0].to(device), self.source[1]),
            answers=None if self.answers is None else self.answers.to(device),
            items=None if self.items is None else self.items.to(device),
            columns={name: column.to(device) for name, column in self.columns.items()},
        )


@dataclass(frozen=True)
class Term:
    """One summand of a loss: `total` is a sum over targets (0-dim, differentiable), `weight` the number (or summed
    weight) of those targets, a plain float known from data alone. `coupled`: the term couples its batch and must not be
    split into micro-batches."""

    total: Tensor
    weight: float
    coefficient: float = 1.0
    coupled: bool = False


@dataclass(frozen=True)
class Loss:
    """Sums, never means: the step's loss is Σ coefficient · Σtotal / Σweight over micro-batches and ranks, each term by
    its own global weight. `metrics` are for the log, each a sum and the number it is a sum of: it tells their mean."""

    terms: dict[str, Term]
    metrics: dict[str, tuple[float, float]] = field(default_factory=dict)


def one_document(ids: Tensor) -> Tokens:
    """Tokens of rows that are each one whole document, from ids [B, T]."""
    pos = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Tokens(ids, pos, torch.zeros_like(ids))


def padded(rows: list[list[int]], pad_id: int = 0) -> tuple[Tokens, Padded]:
    """Right-padded Tokens and their Layout from rows of ids of any lengths."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    doc = torch.full_like(ids, PADDING)
    for b, row in enumerate(rows):
        ids[b, : len(row)] = torch.tensor(row, dtype=torch.int64)
        doc[b, : len(row)] = 0
    pos = torch.arange(longest).expand_as(ids)
    return Tokens(ids, torch.where(doc == PADDING, 0, pos), doc), Padded(tuple(len(row) for row in rows))


def slice_rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows start:stop of a global batch: a micro-batch, or one rank's share."""
    tokens, layout = slice_tokens(batch.tokens, batch.layout, start, stop)
    return Batch(
        tokens,
        batch.targets[start:stop],
        batch.weight[start:stop],
        layout,
        batch.sample_ids[start:stop],
        None if batch.source is None else slice_tokens(*batch.source, start, stop),
        None if batch.answers is None else batch.answers[start:stop],
        None if batch.items is None else batch.items[start:stop],
        {name: column[start:stop] for name, column in batch.columns.items()},
    )


def slice_tokens(tokens: Tokens, layout: Layout, start: int, stop: int) -> tuple[Tokens, Layout]:
    cut = Tokens(*(None if t is None else t[start:stop] for t in vars_in_order(tokens)))  # type: ignore[arg-type]
    return cut, slice_layout(layout, start, stop, tokens.ids.shape[1])


def vars_in_order(tokens: Tokens) -> tuple[Tensor | None, ...]:
    return tokens.ids, tokens.pos, tokens.doc, tokens.kind, tokens.embeds


def slice_layout(layout: Layout, start: int, stop: int, row_tokens: int) -> Layout:
    if isinstance(layout, Padded):
        return Padded(layout.lengths[start:stop])
    if isinstance(layout, Packed):
        low, high = start * row_tokens, stop * row_tokens
        bounds = tuple(edge - low for edge in layout.cu_seqlens if low <= edge <= high)
        return Packed(bounds, max(b - a for a, b in zip(bounds, bounds[1:], strict=False)))
    if isinstance(layout, Cached):
        cut = slice(start, stop)
        each = (layout.tables, layout.starts, layout.counts, layout.sequences, layout.sources)
        return Cached(*(one[cut] for one in each))  # type: ignore[arg-type]
    return layout


def join_rows(parts: Sequence[Batch], order: Sequence[int] | None = None, pad_id: int = 0) -> Batch:
    """The rows of several batches as one, each part below the one before; with `order`, row r is that row of them.
    Shorter rows are padded to the longest. The inverse of `slice_rows`; all parts are of one kind of batch."""
    if len(parts) == 1 and order is None:
        return parts[0]
    rows = list(range(sum(len(part.targets) for part in parts))) if order is None else list(order)
    packed = any(isinstance(part.layout, Packed) for part in parts)
    sources = [part.source for part in parts if part.source is not None]
    # documents of a packed source stand beside those of its target by their number, so every row then ends in padding
    paired = packed and bool(sources)
    tokens, layout = join_tokens([(part.tokens, part.layout) for part in parts], rows, pad_id, paired)
    width = tokens.ids.shape[1]
    names = [name for part in parts for name in part.sample_ids]
    answers = [part.answers for part in parts if part.answers is not None]
    items = [part.items for part in parts if part.items is not None]
    return Batch(
        tokens,
        below([part.targets for part in parts], width, pad_id)[rows],
        below([part.weight for part in parts], width, 0)[rows],
        layout,
        tuple(names[row] for row in rows) if names else (),
        join_tokens(sources, rows, pad_id, paired) if sources else None,
        torch.cat(answers)[rows] if answers else None,
        torch.cat(items)[rows] if items else None,
        {name: below([part.columns[name] for part in parts], width, 0)[rows] for name in parts[0].columns},
    )


def join_tokens(
    parts: Sequence[tuple[Tokens, Layout]], rows: list[int], pad_id: int, end_in_padding: bool
) -> tuple[Tokens, Layout]:
    ends = [row for tokens, layout in parts for row in row_ends(tokens, layout)]
    width = max(tokens.ids.shape[1] for tokens, _ in parts)
    if end_in_padding and max(row[-1] for row in ends) == width:
        width = width // 8 * 8 + 8
    fills = {"ids": pad_id, "pos": 0, "doc": PADDING}
    ids, pos, doc = (below([getattr(t, name) for t, _ in parts], width, fill)[rows] for name, fill in fills.items())
    kinds = [torch.zeros_like(t.ids) if t.kind is None else t.kind for t, _ in parts]
    kind = below(kinds, width, 0)[rows] if any(t.kind is not None for t, _ in parts) else None
    packed = end_in_padding or any(isinstance(layout, Packed) for _, layout in parts)
    return Tokens(ids, pos, doc, kind), join_layouts([ends[row] for row in rows], width, packed)


def below(parts: Sequence[Tensor], width: int, fill: int) -> Tensor:
    """Tensors [B, T] one below the other, each filled up to [B, width]."""
    return torch.cat([pad(part, (0, width - part.shape[1]), value=fill) for part in parts])


def join_layouts(ends: Sequence[list[int]], width: int, packed: bool) -> Layout:
    """The layout of rows whose documents end there; what is left of a packed row is one document of padding."""
    if not packed:
        lengths = tuple(row[0] for row in ends)
        return OneDocument() if min(lengths) == width else Padded(lengths)
    bounds = [0]
    for number, row in enumerate(ends):
        bounds += [number * width + end for end in (row if row[-1] == width else [*row, width])]
    return Packed(tuple(bounds), max(b - a for a, b in zip(bounds, bounds[1:], strict=False)))


def row_ends(tokens: Tokens, layout: Layout) -> list[list[int]]:
    """Where the documents of each row end, padding left out, in tokens from its begin."""
    n_rows, row_tokens = tokens.ids.shape
    if isinstance(layout, Padded):
        return [[length] for length in layout.lengths]
    if isinstance(layout, OneDocument):
        return [[row_tokens]] * n_rows
    assert isinstance(layout, Packed), "cached rows are made by the engine alone"
    there = (tokens.doc != PADDING).sum(1).tolist()
    found: list[list[int]] = [[] for _ in range(n_rows)]
    for edge in layout.cu_seqlens[1:]:
        row, end = (edge - 1) // row_tokens, (edge - 1) % row_tokens + 1
        if end <= there[row]:
            found[row].append(end)
    return found
