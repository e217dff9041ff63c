"""Kernelised attention with the feature map elu(x) + 1, in time linear in length.

Source: Katharopoulos et al. 2020 (arXiv 2006.16236), eqs. 7-12. B rows, T tokens, H heads, K key/value heads,
C head channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import Cached, Layout, Packed, Padded, Tokens, document_lengths
from fledge.errors import ConfigError
from fledge.nn.cache import KeyValueCache

CHUNK = 64
EPS = 1e-6


def kernelised(
    q_BTHC: Tensor,
    k_BTKC: Tensor,
    v_BTKC: Tensor,
    tokens: Tokens,
    layout: Layout,
    causal: bool,
    cache: KeyValueCache | None,
    layer: int,
) -> Tensor:
    """Each document's queries over its keys: [B, T, H, C]. Decoding carries a state instead of keys and values."""
    q, k, v = (features_first(t, q_BTHC.shape[2]) for t in (q_BTHC, k_BTKC, v_BTKC))
    q, k = F.elu(q) + 1, F.elu(k) + 1
    if isinstance(layout, Cached):
        assert cache is not None
        return decoded(q, k, v, layout, cache, layer).transpose(1, 2)
    if isinstance(layout, Packed):
        sizes = document_lengths(layout)
        flat = [t.transpose(1, 2).flatten(0, 1).split(sizes) for t in (q, k, v)]  # [B·T, H, C] by document
        outputs = []
        for document in zip(*flat, strict=True):
            q, k, v = (t.transpose(0, 1)[None] for t in document)
            outputs.append(over(q, k, v, causal)[0].transpose(0, 1))
        return torch.cat(outputs).view(q_BTHC.shape)
    if isinstance(layout, Padded):
        there = (tokens.doc >= 0)[:, None, :, None]
        q, k = q * there, k * there
    return over(q, k, v, causal).transpose(1, 2)


def features_first(x_BTKC: Tensor, n_heads: int) -> Tensor:
    x = x_BTKC.transpose(1, 2)
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], 1)


def over(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """[B, H, T, C] of features: one document a row, from its beginning."""
    if causal:
        return scan(q, k, v, *empty_state(q, v))[0]
    numerator = q @ (k.transpose(-1, -2) @ v)
    return numerator / (q @ k.sum(-2)[..., None] + EPS)


def empty_state(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1]), q.new_zeros(*q.shape[:2], q.shape[-1])


def scan(q: Tensor, k: Tensor, v: Tensor, outer: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Chunk by chunk: inside a chunk by scores, before it by the state (Σ k vᵀ [B, H, C, C], Σ k [B, H, C])."""
    outputs = []
    # split, not slices: the gradient of a slice is a whole tensor of zeros, which makes many of them quadratic
    for q_part, k_part, v_part in zip(*(t.split(CHUNK, -2) for t in (q, k, v)), strict=True):
        scores = (q_part @ k_part.transpose(-1, -2)).tril()
        numerator = scores @ v_part + q_part @ outer
        denominator = scores.sum(-1, keepdim=True) + q_part @ total[..., None]
        outputs.append(numerator / (denominator + EPS))
        outer = outer + k_part.transpose(-1, -2) @ v_part
        total = total + k_part.sum(-2)
    return torch.cat(outputs, -2), outer, total


def decoded(q: Tensor, k: Tensor, v: Tensor, layout: Cached, cache: KeyValueCache, layer: int) -> Tensor:
    out = torch.zeros_like(q)
    for b, (sequence, start, count) in enumerate(zip(layout.sequences, layout.starts, layout.counts, strict=True)):
        part = [t[b : b + 1, :, :count] for t in (q, k, v)]
        known = cache.state(layer, sequence, start)
        if known is None and start:
            raise ConfigError("cache: a recurrent state can't go back to an earlier token; start the document again")
        outer, total = known or empty_state(part[0], part[2])
        mixed, outer, total = scan(part[0], part[1], part[2], outer, total)
        cache.keep_state(layer, sequence, start, start + count, (outer, total))
        out[b : b + 1, :, :count] = mixed
    return out


def shares(q_BTHC: Tensor, k_BSKC: Tensor, visible_BTS: Tensor) -> Tensor:
    """How much of each key's value a query takes, [B, H, T, S]: what `kernelised` never forms. For looking at."""
    q, k = (F.elu(features_first(t, q_BTHC.shape[2])) + 1 for t in (q_BTHC, k_BSKC))
    scores = (q @ k.transpose(-1, -2)) * visible_BTS[:, None]
    return scores / (scores.sum(-1, keepdim=True) + EPS)
