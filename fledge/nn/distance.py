"""Exact attention with a bias by distance over long documents, in memory linear in length: `fledge.nn.blockwise` where
what is added to a score depends on key position - query position alone.

Queries go in reverse order. Then what is added to a block of scores is a view of the values by distance, and the
gradient of the values is a sum over the rows of a view of the block's gradient: nothing is laid out or gathered.

B rows, T queries, S keys, H heads, K key/value heads, C head channels, D = T + S - 1 distances from -(T - 1) on; t
queries and s keys of one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.nn.bias import AlibiBias, BucketBias
from fledge.nn.blockwise import against, crossed, times
from fledge.nn.pieces import near
from fledge.nn.visibility import Sight

WHOLE = -1  # as a window: none


def by_distance(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Sight, bias: AlibiBias | BucketBias) -> Tensor:
    """Attention of whole documents, or of whole documents' queries to a whole source: [B, T, H, C]. Of `sight`, scale,
    causality and window count; every query must see a key."""
    if sight.dropout:
        raise ConfigError(
            "train.dropout.attention: expected 0 where documents are attended block by block (patterns, and biases or "
            f"softcaps over long documents), got {sight.dropout}; leave it at 0"
        )
    assert sight.pattern is None and sight.softcap is None
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_BTHC * sight.scale, k_BSKC, v_BSKC))
    distances = torch.arange(1 - q.shape[2], k.shape[2], device=q.device)
    values = bias.values(distances, torch.promote_types(q.dtype, torch.float32)).t().contiguous()
    window = WHOLE if sight.window is None else sight.window
    return ByDistance.apply(q, k, v, values, sight.causal, window).transpose(1, 2)


class ByDistance(torch.autograd.Function):
    """Scaled q [B, H, T, C], k and v [B, K, S, C], values [H, D] -> [B, H, T, C]. To the compiler one operator: its
    loops over unrolled blocks are slower than the blocks' own products and passes."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, window: int) -> Tensor:  # type: ignore[override]
        attend = torch.ops.fledge.by_distance if torch.compiler.is_compiling() else mixed
        out, normaliser = attend(q, k, v, values, causal, window)
        ctx.save_for_backward(q, k, v, values, out, normaliser)
        ctx.causal, ctx.window = causal, window
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        attend = torch.ops.fledge.by_distance_back if torch.compiler.is_compiling() else gradients
        learned = bool(ctx.needs_input_grad[3])
        q, k, v, values, out, normaliser = ctx.saved_tensors
        found = attend(grad, q, k, v, values, out, normaliser, ctx.causal, ctx.window, learned)
        return *found[:3], found[3] if learned else None, None, None


def mixed(q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, window: int) -> tuple[Tensor, Tensor]:
    """What each query takes, [B, H, T, C], and the logarithm of its sum of exponentials, [B, H, T], float32 or better
    and the last query first."""
    exact, q = torch.promote_types(q.dtype, torch.float32), q.flip(2)
    peak = q.new_full(q.shape[:3], -torch.inf, dtype=exact)
    total, out = torch.zeros_like(peak), torch.zeros_like(q, dtype=exact)
    for at, to, seen in turned(q.shape[2], k.shape[2], causal, window, q.device):
        weights = scores_of(q[:, :, at], k[:, :, to], values, at, to, seen)
        before, sums, mix = peak[:, :, at], total[:, :, at], out[:, :, at]
        high = torch.maximum(before, weights.amax(-1))
        base = high.masked_fill(high == -torch.inf, 0.0)  # nothing seen so far
        weights.sub_(base[..., None]).exp_()
        shrink = (before - base).exp_()
        sums.mul_(shrink).add_(weights.sum(-1))
        mix.mul_(shrink[..., None]).add_(times(weights.to(v.dtype), v[:, :, to]))
        before.copy_(high)
    out.div_(total[..., None])
    return out.to(q.dtype).flip(2), peak.add_(total.log_())


def gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    values: Tensor,
    out: Tensor,
    normaliser: Tensor,
    causal: bool,
    window: int,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `grad` [B, H, T, C] those of q, k, v and, where they are learned, of the values (zeros else)."""
    exact, kinds = normaliser.dtype, (q.dtype, k.dtype, v.dtype, values.dtype)
    q_grad, k_grad, v_grad, values_grad = (torch.zeros_like(t, dtype=exact) for t in (q, k, v, values))
    along = (grad * out).sum(-1, keepdim=True, dtype=exact).flip(2)
    q, grad = q.flip(2), grad.flip(2)
    boards: dict[torch.Size, Board] = {}
    for at, to, seen in turned(q.shape[2], k.shape[2], causal, window, q.device):
        q_part, k_part, grad_part = q[:, :, at], k[:, :, to], grad[:, :, at]
        weights = scores_of(q_part, k_part, values, at, to, seen).sub_(normaliser[:, :, at, None]).exp_()
        v_grad[:, :, to].add_(crossed(weights.to(v.dtype), grad_part, k.shape[1]))
        change = against(grad_part, v[:, :, to]).to(exact).sub_(along[:, :, at])
        if learned:
            board = boards.get(weights.shape)
            if board is None:
                board = boards[weights.shape] = Board(weights)
            change = torch.mul(change, weights, out=board.block)
            values_grad[:, at.start + to.start :][:, : board.diagonals.shape[-1]].add_(board.diagonals.sum((0, 2)))
        else:
            change.mul_(weights)
        change = change.to(q.dtype)
        q_grad[:, :, at].add_(times(change, k_part))
        k_grad[:, :, to].add_(crossed(change, q_part, k.shape[1]))
    found = (q_grad.flip(2), k_grad, v_grad, values_grad)
    return tuple(g.to(kind) for g, kind in zip(found, kinds, strict=True))  # type: ignore[return-value]


class Board:
    """A block [B, H, t, s] whose rows stand t + s apart, zeros between them. Read with rows one number shorter, the
    same memory has each of its diagonals in a column: [B, H, t, t + s - 1]."""

    def __init__(self, like: Tensor):
        n_rows, n_heads, t, s = like.shape
        memory = like.new_zeros(n_rows, n_heads, t * (t + s))
        self.block = memory.view(n_rows, n_heads, t, t + s)[..., :s]
        self.diagonals = memory[..., : t * (t + s - 1)].unflatten(2, (t, t + s - 1))


def scores_of(q: Tensor, k: Tensor, values: Tensor, at: slice, to: slice, seen: Tensor | None) -> Tensor:
    """A piece's scores, -inf where a query doesn't see: float32 or better [B, H, t, s]."""
    scores = against(q, k).to(torch.promote_types(q.dtype, torch.float32))
    begin = values[:, at.start + to.start :]
    scores.add_(begin.as_strided((len(values), q.shape[2], k.shape[2]), (values.stride(0), 1, 1)))
    return scores if seen is None else scores.masked_fill_(~seen, -torch.inf)


def turned(
    n_queries: int, n_keys: int, causal: bool, window: int, device: torch.device
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """The pieces of a document, counted from its last query: ranges of queries and keys, and which of them meet."""
    sight = Sight(1.0, causal, None if window == WHOLE else window)
    for queries, keys, seen in near(n_queries, n_keys, sight, device):
        assert isinstance(queries, slice) and isinstance(keys, slice)
        yield slice(n_queries - queries.stop, n_queries - queries.start), keys, None if seen is None else seen.flip(0)


@torch.library.custom_op(
    "fledge::by_distance",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor values, bool causal, int window) -> (Tensor, Tensor)",
)
def _mixed(q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, window: int) -> tuple[Tensor, Tensor]:
    return mixed(q, k, v, values, causal, window)


@_mixed.register_fake
def _mixed_shape(q: Tensor, k: Tensor, v: Tensor, values: Tensor, causal: bool, window: int) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=exact)


@torch.library.custom_op(
    "fledge::by_distance_back",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor values, Tensor out, Tensor normaliser, bool causal, "
    "int window, bool learned) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    values: Tensor,
    out: Tensor,
    normaliser: Tensor,
    causal: bool,
    window: int,
    learned: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return gradients(grad, q, k, v, values, out, normaliser, causal, window, learned)


@_gradients.register_fake
def _gradients_shape(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(values)
