"""Which queries of a document meet which keys, as pieces for `fledge.nn.blockwise`: a plan for each pattern.

Every pair that the pattern shows is in one piece and no pair in two; a test holds each plan to
`fledge.nn.visibility.visible`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fledge.nn.blockwise import Piece
from fledge.nn.config import BigBird, Fixed, Longformer, Prefix, Strided
from fledge.nn.visibility import Sight, blocks_of, by_place

QUERIES, KEYS = 256, 1024  # the largest piece: its scores stay in the cache


def plan(n_queries: int, n_keys: int, sight: Sight, device: torch.device) -> list[Piece]:
    """Pieces of a document in which no token is global."""
    return list(pieces(n_queries, n_keys, sight, device))


def pieces(n_queries: int, n_keys: int, sight: Sight, device: torch.device) -> Iterable[Piece]:
    pattern = sight.pattern
    if isinstance(pattern, BigBird) and n_keys > pattern.full_tokens:
        return blocks(n_keys, pattern, device)
    if isinstance(pattern, Strided):
        return strided(n_keys, pattern.stride, sight, device)
    if isinstance(pattern, Fixed):
        return fixed(n_keys, pattern, sight, device)
    return near(n_queries, n_keys, sight, device)


def plan_with_globals(n_tokens: int, chosen: Tensor, sight: Sight) -> list[Piece]:
    """Pieces of a document whose tokens at positions `chosen`, int64 [G], are global."""
    if isinstance(sight.pattern, Longformer):
        return list(local_and_global(n_tokens, chosen, sight))
    assert isinstance(sight.pattern, Prefix)
    return list(prefixed(n_tokens, chosen, sight))


def from_globals(n_tokens: int, chosen: Tensor) -> list[Piece]:
    """The tokens at positions `chosen` see all."""
    return [Piece(some, keys) for some in parts(chosen, QUERIES) for keys in ranges(n_tokens, KEYS)]


def ranges(end: int, size: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(end, at + size)) for at in range(start, end, size))


def parts(chosen: Tensor, size: int) -> Iterator[Tensor]:
    """None for none: `split` alone gives an empty one."""
    return (part for part in chosen.split(size) if len(part))


def near(n_queries: int, n_keys: int, sight: Sight, device: torch.device) -> Iterator[Piece]:
    """What causality and a window leave: a band of keys around each range of queries."""
    behind, ahead = extent(sight)
    masks: dict[tuple[int, int, int], Tensor] = {}
    for queries in ranges(n_queries, QUERIES):
        low, high = max(0, queries.start - behind), min(n_keys, queries.stop + ahead)
        # what all these queries see, between what only some of them do
        first, last = max(low, queries.stop - 1 - behind), min(high, queries.start + 1 + ahead)
        edges = ((low, first), (last, high)) if first < last else ((low, high),)
        if first < last:
            yield from (Piece(queries, keys) for keys in ranges(last, KEYS, first))
        for keys in (part for start, end in edges for part in ranges(end, KEYS, start)):
            shape = (queries.start - keys.start, queries.stop - queries.start, keys.stop - keys.start)
            if shape not in masks:
                masks[shape] = seen_by_place(queries, keys, sight, device)
            yield Piece(queries, keys, masks[shape])


def extent(sight: Sight) -> tuple[int, int]:
    """How many positions a query sees behind it and ahead of it."""
    whole = 1 << 40
    if sight.window is not None:
        return (sight.window - 1, 0) if sight.causal else (sight.window // 2,) * 2
    if isinstance(sight.pattern, Longformer):
        return (sight.pattern.window // 2,) * 2
    return (whole, 0) if sight.causal else (whole, whole)


def seen_by_place(queries: slice, keys: slice, sight: Sight, device: torch.device) -> Tensor:
    """bool [t, s]."""
    return by_place(places(queries, device)[:, None], places(keys, device), sight)


def places(some: slice, device: torch.device) -> Tensor:
    return torch.arange(some.start, some.stop, some.step or 1, device=device)


def local_and_global(n_tokens: int, chosen: Tensor, sight: Sight) -> Iterator[Piece]:
    """Longformer: the window, global keys outside it, and what is left for queries that are global themselves."""
    device = chosen.device
    yield from near(n_tokens, n_tokens, sight, device)
    if not len(chosen):
        return
    for queries in ranges(n_tokens, QUERIES):
        yield Piece(queries, chosen, ~by_place(places(queries, device)[:, None], chosen, sight))
    is_global = torch.zeros(n_tokens, dtype=torch.bool, device=device).index_fill_(0, chosen, True)
    for some in parts(chosen, QUERIES):
        for keys in ranges(n_tokens, KEYS):
            yield Piece(some, keys, ~by_place(some[:, None], places(keys, device), sight) & ~is_global[keys])


def prefixed(n_tokens: int, chosen: Tensor, sight: Sight) -> Iterator[Piece]:
    """Prefix: the past, and the prefix's keys that come later."""
    yield from near(n_tokens, n_tokens, sight, chosen.device)
    for queries in ranges(int(chosen.max()) if len(chosen) else 0, QUERIES):
        yield Piece(queries, chosen, chosen > places(queries, chosen.device)[:, None])


def blocks(n_tokens: int, pattern: BigBird, device: torch.device) -> Iterator[Piece]:
    """BigBird: each block against its own list of blocks, the first and last against all."""
    rows = blocks_of(pattern, -(-n_tokens // pattern.block))
    block = torch.arange(pattern.block, device=device)
    for seen, queries in zip(rows, ranges(n_tokens, pattern.block), strict=True):
        if len(seen) == len(rows):
            for some in ranges(queries.stop, QUERIES, queries.start):
                yield from (Piece(some, keys) for keys in ranges(n_tokens, KEYS))
            continue
        keys = (torch.tensor(seen, device=device)[:, None] * pattern.block + block).flatten()
        yield Piece(queries, keys[: len(keys) - (pattern.block * len(rows) - n_tokens)])  # the last block may be short


def strided(n_tokens: int, stride: int, sight: Sight, device: torch.device) -> Iterator[Piece]:
    """The last `stride` positions; then every `stride`-th before, among positions with the same remainder."""
    yield from near(n_tokens, n_tokens, Sight(sight.scale, True, stride), device)
    triangle = torch.ones(QUERIES, QUERIES, dtype=torch.bool, device=device).tril()
    for remainder in range(min(stride, n_tokens - stride)):
        column = range(remainder, n_tokens, stride)
        for some in ranges(len(column), QUERIES):
            for keys in ranges(some.start, KEYS):
                yield Piece(stepped(column[some]), stepped(column[keys]))
            size = some.stop - some.start - 1  # each sees those before it, not itself
            if size:
                after, until = column[some.start + 1 : some.stop], column[some.start : some.stop - 1]
                yield Piece(stepped(after), stepped(until), triangle[:size, :size])


def stepped(places: range) -> slice:
    return slice(places.start, places.stop, places.step)


def fixed(n_tokens: int, pattern: Fixed, sight: Sight, device: torch.device) -> Iterator[Piece]:
    """The own block, and the last `summary` positions of the blocks before."""
    stride, summary = pattern.stride, min(pattern.summary, pattern.stride)
    chosen = [place for place in range(n_tokens) if place % stride >= stride - summary]
    summaries = torch.tensor(chosen, dtype=torch.int64, device=device)  # their number is known without looking
    masks: dict[tuple[int, int], Tensor] = {}
    for some in ranges(n_tokens, stride * max(1, QUERIES // stride)):  # whole blocks
        before = summaries[: some.start // stride * summary]
        for queries in ranges(some.stop, QUERIES, some.start):
            yield from (Piece(queries, keys) for keys in ranges(queries.start, KEYS, some.start))
            shape = (queries.start - some.start, queries.stop - queries.start)
            if shape not in masks:
                masks[shape] = seen_by_place(queries, queries, sight, device)
            yield Piece(queries, queries, masks[shape])
            yield from (Piece(queries, part) for part in parts(before, KEYS))
