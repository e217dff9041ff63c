"""Exact attention in memory linear in length: blocks of scores go into a running softmax and are forgotten, and are
computed again for the gradient.

Source: Dao et al. 2022 (arXiv 2205.14135), algorithms 1 and 4. B rows, T queries, S keys, H heads, K key/value heads,
C head channels; t queries and s keys of one piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fledge.errors import ConfigError
from fledge.nn.bias import Bias, uncached
from fledge.nn.visibility import Sight

Place: TypeAlias = slice | Tensor


class Piece(NamedTuple):
    """Queries and keys of a document that meet: ranges, or positions int64, none twice. `seen`, bool [t, s]: which of
    them (None: all)."""

    queries: Place
    keys: Place
    seen: Tensor | None = None


def blockwise(
    q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, pieces: Sequence[Piece], sight: Sight, bias: Bias | None
) -> Tensor:
    """Attention of each query to the keys that it meets in `pieces`, no pair of them twice: [B, T, H, C].

    Scale and softcap are of `sight`; what is seen, the pieces say alone. A query that meets nothing gives zeros.
    """
    if sight.dropout:
        raise ConfigError(
            "train.dropout.attention: expected 0 where documents are attended block by block (patterns, and biases or "
            f"softcaps over long documents), got {sight.dropout}; leave it at 0"
        )
    q, k, v = (t.transpose(1, 2).contiguous() for t in (q_BTHC, k_BSKC, v_BSKC))
    bias = uncached(bias)
    learned = () if bias is None else bias.learned()
    return Blockwise.apply(q, k, v, pieces, sight, bias, *learned).transpose(1, 2)


class Blockwise(torch.autograd.Function):
    """q [B, H, T, C], k and v [B, K, S, C], pieces, sight, bias, tensors that the bias learns -> [B, H, T, C]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces, sight, bias, *learned) -> Tensor:  # type: ignore[no-untyped-def, override]
        exact = torch.promote_types(q.dtype, torch.float32)
        peak = q.new_full(q.shape[:3], -torch.inf, dtype=exact)
        total, out = torch.zeros_like(peak), q.new_zeros(q.shape, dtype=exact)
        places = Places(q, k)
        for piece in pieces:
            at = piece.queries
            scores = hidden(scores_of(q[:, :, at], k[:, :, piece.keys], piece, places, sight, bias), piece)
            before = peak[:, :, at]
            high = torch.maximum(before, scores.amax(-1))
            base = high.masked_fill(high == -torch.inf, 0.0)  # nothing seen so far
            weights, shrink = scores.sub_(base[..., None]).exp_(), (before - base).exp_()
            total[:, :, at] = total[:, :, at] * shrink + weights.sum(-1)
            out[:, :, at] = out[:, :, at] * shrink[..., None] + times(weights.to(v.dtype), v[:, :, piece.keys])
            peak[:, :, at] = high
        nothing = total == 0
        out = (out / total.masked_fill(nothing, 1.0)[..., None]).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, (peak + total.log()).masked_fill(nothing, torch.inf))
        ctx.pieces, ctx.sight, ctx.bias, ctx.learned = pieces, sight, bias, learned
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, normaliser = ctx.saved_tensors
        sight: Sight = ctx.sight
        grads = [torch.zeros_like(t, dtype=normaliser.dtype) for t in (q, k, v, *ctx.learned)]
        along = (grad * out).sum(-1, keepdim=True, dtype=normaliser.dtype)
        places = Places(q, k)
        for piece in ctx.pieces:
            at, to = piece.queries, piece.keys
            q_part, k_part, v_part, grad_part = q[:, :, at], k[:, :, to], v[:, :, to], grad[:, :, at]
            scores = scores_of(q_part, k_part, piece, places, sight, ctx.bias)
            slope = None if sight.softcap is None else 1 - (scores / sight.softcap).square_()
            weights = hidden(scores, piece).sub_(normaliser[:, :, at, None]).exp_()
            grads[2][:, :, to] += crossed(weights.to(v.dtype), grad_part, k.shape[1])
            change = weights.mul_(against(grad_part, v_part).to(weights.dtype).sub_(along[:, :, at]))
            if slope is not None:
                change.mul_(slope)
            if ctx.bias is not None:
                add_bias_gradients(grads, change, q_part, k_part, piece, places, ctx.bias, ctx.learned)
            change = change.mul_(sight.scale).to(q.dtype)
            grads[0][:, :, at] += times(change, k_part)
            grads[1][:, :, to] += crossed(change, q_part, k.shape[1])
        q_grad, k_grad, v_grad, *learned = (g.to(t.dtype) for g, t in zip(grads, (q, k, v, *ctx.learned), strict=True))
        return q_grad, k_grad, v_grad, None, None, None, *learned


class Places:
    """Positions of all queries and keys, from which pieces take theirs."""

    def __init__(self, q: Tensor, k: Tensor):
        self.queries, self.keys = (torch.arange(t.shape[2], device=t.device) for t in (q, k))

    def of(self, piece: Piece) -> tuple[int | Tensor, int | Tensor]:
        """Where a range begins, or where each token stands."""
        both = ((self.queries, piece.queries), (self.keys, piece.keys))
        q_at, k_at = (at.start if isinstance(at, slice) and at.step is None else pos[at] for pos, at in both)
        return q_at, k_at


def scores_of(q: Tensor, k: Tensor, piece: Piece, places: Places, sight: Sight, bias: Bias | None) -> Tensor:
    """Scores of a piece before anything is hidden: float32 or better [B, H, t, s]."""
    scores = against(q, k) * sight.scale
    if bias is not None:
        scores = scores + added_to(q, k, piece, places, bias)
    if sight.softcap is not None:
        scores = torch.tanh(scores / sight.softcap) * sight.softcap
    return scores.to(torch.promote_types(q.dtype, torch.float32))


def added_to(q: Tensor, k: Tensor, piece: Piece, places: Places, bias: Bias) -> Tensor:
    """What the bias adds to a piece: [1 or B, H, t, s]."""
    return bias(q.transpose(1, 2), k.transpose(1, 2), *places.of(piece))


def hidden(scores: Tensor, piece: Piece) -> Tensor:
    return scores if piece.seen is None else scores.masked_fill_(~piece.seen, -torch.inf)


def against(x_BHtC: Tensor, y_BKsC: Tensor) -> Tensor:
    """x yᵀ, heads of x in groups of one head of y: [B, H, t, s]."""
    return times(x_BHtC, y_BKsC.transpose(-1, -2))


def times(x_BHts: Tensor, y_BKsC: Tensor) -> Tensor:
    """x y, heads of x in groups of one head of y: [B, H, t, C]."""
    n_rows, n_heads, n_queries, _ = x_BHts.shape
    grouped = x_BHts.reshape(n_rows, y_BKsC.shape[1], -1, x_BHts.shape[-1])
    return (grouped @ y_BKsC).view(n_rows, n_heads, n_queries, -1)


def crossed(x_BHts: Tensor, y_BHtC: Tensor, n_groups: int) -> Tensor:
    """xᵀ y, summed over the heads of each group: [B, K, s, C]."""
    x, y = (t.reshape(t.shape[0], n_groups, -1, t.shape[-1]) for t in (x_BHts, y_BHtC))
    return x.transpose(-1, -2) @ y


def add_bias_gradients(
    grads: list[Tensor],
    change: Tensor,
    q: Tensor,
    k: Tensor,
    piece: Piece,
    places: Places,
    bias: Bias,
    learned: tuple[Tensor, ...],
) -> None:
    """Add what a piece's bias gives back to queries, keys and the tensors that it learns; `change` [B, H, t, s]."""
    with torch.enable_grad():
        q, k = (t.detach().requires_grad_() for t in (q, k))
        added = added_to(q, k, piece, places, bias)
    if not added.requires_grad:
        return
    back = change.sum_to_size(added.shape).to(added.dtype)
    found = torch.autograd.grad(added, (q, k, *learned), back, allow_unused=True)
    for grad, place, part in zip(grads[:2], (piece.queries, piece.keys), found[:2], strict=True):
        if part is not None:
            grad[:, :, place] += part
    for grad, part in zip(grads[3:], found[2:], strict=True):
        if part is not None:
            grad += part
