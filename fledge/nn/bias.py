"""Numbers added to scores by distance. H heads, T query tokens, S key tokens.

A bias is called as `bias(q_BTHC, k_BSKC, q_at, k_at)` -> [1 or B, H, T, S]: an integer says that queries stand at
positions q_at.. and keys at k_at.. of their document, int64 [T] and [S] where each of them stands. Most biases look at
the positions alone and are computed once for all layers of a stack.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fledge.nn.config import Alibi, BigBird, Buckets

Places: TypeAlias = int | Tensor


class Bias(Protocol):
    """What is added to scores."""

    @property
    def shifts(self) -> bool:
        """Whether it goes by distance alone, so that any range of a document is like the first."""

    def __call__(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor: ...

    def learned(self) -> tuple[Tensor, ...]:
        """The tensors that a gradient of it reaches, queries and keys apart."""


class AlibiBias(nn.Module):
    """-slope · distance, a slope a head. Source: Press et al. 2021 (arXiv 2108.12409), §3."""

    def __init__(self, n_heads: int, coarse: bool = False):
        super().__init__()
        self.slopes, self.coarse, self.shifts = alibi_slopes(n_heads), coarse, not coarse

    def learned(self) -> tuple[Tensor, ...]:
        return ()

    def forward(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
        if self.coarse:
            slopes = torch.tensor(self.slopes, dtype=torch.bfloat16, device=q.device)
            added = (slopes[:, None, None] * positions(k, k_at)).to(q.dtype) / math.sqrt(q.shape[-1])
            return added.expand(1, -1, q.shape[1], -1)
        return laid_out(self, q, k, q_at, k_at)

    def values(self, ahead: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers [..., H] of distances [...], key position - query position."""
        return -ahead.abs().to(dtype)[..., None] * torch.tensor(self.slopes, dtype=dtype, device=ahead.device)


def ahead_of(q_BTHC: Tensor, k_BSKC: Tensor, q_at: Places, k_at: Places) -> Tensor:
    """Key position - query position, int64 [T, S]."""
    return positions(k_BSKC, k_at) - positions(q_BTHC, q_at)[:, None]


def laid_out(bias: AlibiBias | BucketBias, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
    """What a bias adds by distance: [1, H, T, S].

    Between ranges each diagonal is one distance: T + S values instead of T · S, laid out by shifting row by row.
    """
    if isinstance(q_at, Tensor) or isinstance(k_at, Tensor):
        return bias.values(ahead_of(q, k, q_at, k_at), q.dtype).movedim(-1, 0)[None]
    n_queries, n_keys = q.shape[1], k.shape[1]
    low, size = k_at - q_at - n_queries + 1, max(1, n_queries) + n_keys
    row = bias.values(torch.arange(low, low + size, device=q.device), q.dtype).t()  # [H, T + S]
    rows = row[:, None].expand(-1, n_queries, size).flatten(1)
    shifted = rows[:, n_queries - 1 :][:, : n_queries * (size - 1)]  # row t begins T - 1 - t into the values
    return shifted.unflatten(1, (n_queries, size - 1))[None, ..., :n_keys]


def positions(x_BTHC: Tensor, at: Places) -> Tensor:
    """int64 [T]."""
    return at if isinstance(at, Tensor) else torch.arange(at, at + x_BTHC.shape[1], device=x_BTHC.device)


class Once:
    """A bias by positions alone, computed once a forward pass for each pair of ranges."""

    def __init__(self, bias: AlibiBias | BucketBias):
        self.bias, self.shifts = bias, bias.shifts
        self.known: dict[tuple[int, int, int, int], Tensor] = {}

    def learned(self) -> tuple[Tensor, ...]:
        return self.bias.learned()

    def __call__(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
        assert not isinstance(q_at, Tensor) and not isinstance(k_at, Tensor)
        key = (q_at, q.shape[1], k_at, k.shape[1])
        if key not in self.known:
            with as_it_is():
                self.known[key] = self.bias(q, k, q_at, k_at)
        return self.known[key]


def as_it_is() -> AbstractContextManager[object]:
    """What is computed inside is kept for the backward pass even where a block is computed again: the second time the
    block finds it known."""
    return nullcontext() if torch.compiler.is_compiling() else saved_tensors_hooks(lambda x: x, lambda x: x)


def uncached(bias: Bias | None) -> Bias | None:
    """The bias itself: blocks that are kept would add up to the whole square."""
    return bias.bias if isinstance(bias, Once) else bias


class FirstBlock:
    """A fixed BigBird counts the keys of the first block 1 + n_random times, for queries between the first block and
    the last of a document of `n_tokens`: that many times a key is the key with its logarithm added to the score."""

    def __init__(self, pattern: BigBird, n_tokens: int, bias: Bias | None):
        self.block, self.last = pattern.block, (n_tokens - 1) // pattern.block
        self.often, self.bias, self.shifts = math.log(1 + pattern.n_random), uncached(bias), False

    def learned(self) -> tuple[Tensor, ...]:
        return () if self.bias is None else self.bias.learned()

    def __call__(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
        q_block, k_block = (positions(x, at) // self.block for x, at in ((q, q_at), (k, k_at)))
        often = ((q_block > 0) & (q_block < self.last))[:, None] & (k_block == 0)
        added = (often * self.often).to(q.dtype)[None, None]
        return added if self.bias is None else added + self.bias(q, k, q_at, k_at)


def alibi_slopes(n_heads: int) -> tuple[float, ...]:
    """Geometric slopes; for a number of heads that is no power of two, every other slope of the next one fills up."""
    power = 2 ** math.floor(math.log2(n_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4.0 * (i + 1) / power) for i in range(0, 2 * (n_heads - power), 2)]
    return tuple(slopes + between)


class BucketBias(nn.Module):
    """A learned number for each (bucket of distance, head): weight [buckets, H]. Source: Raffel et al. 2019, §2.1."""

    def __init__(self, config: Buckets, n_heads: int, causal: bool):
        super().__init__()
        self.config, self.causal, self.shifts = config, causal, True
        self.weight = nn.Parameter(torch.empty(config.n_buckets, n_heads))

    def learned(self) -> tuple[Tensor, ...]:
        return (self.weight,)

    def forward(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
        return laid_out(self, q, k, q_at, k_at)

    def values(self, ahead: Tensor, dtype: torch.dtype) -> Tensor:
        """Numbers [..., H] of distances [...], key position - query position, of the weight's dtype."""
        return self.weight[bucket_of(ahead, self.config, self.causal)]


def bucket_of(ahead: Tensor, config: Buckets, causal: bool) -> Tensor:
    """Bucket of key position - query position: half of them exact, the rest logarithmic up to max_distance."""
    n_buckets = config.n_buckets
    start = torch.zeros_like(ahead)
    if causal:
        distance = (-ahead).clamp(min=0)
    else:
        n_buckets //= 2
        start = (ahead > 0).to(ahead.dtype) * n_buckets
        distance = ahead.abs()
    exact = n_buckets // 2
    # float32 and this order of operations: one rounding more moves a bucket's edge
    far = torch.log(distance.float().clamp(min=1) / exact) / math.log(config.max_distance / exact)
    far = (exact + (far * (n_buckets - exact)).to(ahead.dtype)).clamp(max=n_buckets - 1)
    return start + torch.where(distance < exact, distance, far)


def make_bias(position: object, n_heads: int, causal: bool) -> AlibiBias | BucketBias | None:
    """The bias module of a position config, or None. A stack has one for all its layers."""
    if isinstance(position, Alibi):
        return AlibiBias(n_heads, position.coarse)
    if isinstance(position, Buckets):
        return BucketBias(position, n_heads, causal)
    return None
