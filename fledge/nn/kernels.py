"""Attention kernels: the only place where scores are computed. Each equals `dense` in a test.

B rows, T query tokens, S key tokens, H heads, K key/value heads, C head channels. Scores are divided by sqrt(C)
(Vaswani et al. 2017, eq. 1). A query that sees no key gives zeros.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import Cached, Layout, OneDocument, Packed, Padded, Tokens
from fledge.nn.cache import KeyValueCache


def attend(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, tokens: Tokens, layout: Layout, causal: bool) -> Tensor:
    """Attention inside each document, chosen by layout alone: [B, T, H, C]."""
    if isinstance(layout, OneDocument):
        return fast(q_BTHC, k_BTKC, v_BTKC, causal)
    if isinstance(layout, Packed):
        return by_document(q_BTHC, k_BTKC, v_BTKC, layout, causal)
    if isinstance(layout, Padded):
        return dense(q_BTHC, k_BTKC, v_BTKC, visible(tokens, tokens, causal))
    raise TypeError(f"{type(layout).__name__} is decoded by attend_cached")


def visible(queries: Tokens, keys: Tokens, causal: bool) -> Tensor:
    """bool [B, T, S]: the same document, neither padding, and, if causal, no later position."""
    q_doc, k_doc = queries.doc[:, :, None], keys.doc[:, None, :]
    seen = (q_doc == k_doc) & (q_doc >= 0)
    if causal:
        seen = seen & (keys.pos[:, None, :] <= queries.pos[:, :, None])
    return seen


def dense(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, visible_BTS: Tensor) -> Tensor:
    """The reference: every score, then a masked softmax. [B, T, H, C]."""
    q, k, v = (t.transpose(1, 2) for t in (q_BTHC, k_BSKC, v_BSKC))
    if k.shape[1] != q.shape[1]:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
    mask = visible_BTS[:, None]
    weights = torch.softmax(scores.float().masked_fill(~mask, -torch.inf), -1)
    weights = torch.where(mask.any(-1, keepdim=True), weights, 0.0).to(v.dtype)  # softmax of nothing is NaN
    return (weights @ v).transpose(1, 2)


def fast(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, causal: bool) -> Tensor:
    """torch's fused kernel on rows that are whole documents: no mask is built. [B, T, H, C]."""
    q, k, v = (t.transpose(1, 2) for t in (q_BTHC, k_BTKC, v_BTKC))
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type == "cpu":
        # the fused CPU kernel takes equal head counts only; enable_gqa falls back to explicit scores
        groups, grouped = q.shape[1] // k.shape[1], False
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def by_document(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, layout: Packed, causal: bool) -> Tensor:
    """Packed documents one by one (a mask would compute every cross score and throw it away). [B, T, H, C].

    Neighbours of equal length go together as one call.
    """
    lengths = [end - start for start, end in zip(layout.cu_seqlens, layout.cu_seqlens[1:], strict=False)]
    runs: list[tuple[int, int]] = []  # (how many documents, tokens each)
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    sizes = [count * length for count, length in runs]
    pieces = zip(*(t.flatten(0, 1).split(sizes) for t in (q_BTHC, k_BTKC, v_BTKC)), runs, strict=True)
    outputs = []
    for q, k, v, run in pieces:
        rows = [t.unflatten(0, run) for t in (q, k, v)]
        outputs.append(fast(rows[0], rows[1], rows[2], causal).flatten(0, 1))
    return torch.cat(outputs).view(q_BTHC.shape)


def attend_cached(
    q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, layout: Cached, cache: KeyValueCache, layer: int
) -> Tensor:
    """Decoding: write each row's new keys and values to its slot, then attend to all of the slot. [B, T, H, C].

    Rows are computed one by one, so that a row's bits don't depend on its company's lengths.
    """
    out = torch.zeros_like(q_BTHC)
    for b, (slot, start, count) in enumerate(zip(layout.slots, layout.starts, layout.counts, strict=True)):
        keys, values = cache.write(layer, slot, start, k_BTKC[b, :count], v_BTKC[b, :count])
        if count == 1:
            out[b, 0] = one_query(q_BTHC[b, 0], keys, values)
        elif start == 0:
            out[b : b + 1, :count] = fast(q_BTHC[b : b + 1, :count], k_BTKC[b : b + 1, :count],
                                          v_BTKC[b : b + 1, :count], causal=True)  # fmt: skip
        else:
            out[b, :count] = chunk(q_BTHC[b, :count], keys, values, start)
    return out


def one_query(q_HC: Tensor, keys_KSC: Tensor, values_KSC: Tensor) -> Tensor:
    """One token against all of its past: [H, C]."""
    n_kv = keys_KSC.shape[0]
    q_KGC = q_HC.view(n_kv, -1, q_HC.shape[-1]) * (1.0 / math.sqrt(q_HC.shape[-1]))
    weights = torch.softmax(torch.bmm(q_KGC, keys_KSC.transpose(1, 2)), -1)
    return torch.bmm(weights, values_KSC).view(q_HC.shape)


def chunk(q_THC: Tensor, keys_KSC: Tensor, values_KSC: Tensor, start: int) -> Tensor:
    """T tokens at positions start.. against S = start + T keys (torch's is_causal would align the mask top-left)."""
    n_tokens, n_keys = q_THC.shape[0], keys_KSC.shape[1]
    mask = torch.ones(n_tokens, n_keys, dtype=torch.bool, device=q_THC.device).tril(start)
    groups = q_THC.shape[1] // keys_KSC.shape[0]
    k, v = (t.repeat_interleave(groups, 0)[None] for t in (keys_KSC, values_KSC))
    return F.scaled_dot_product_attention(q_THC.transpose(0, 1)[None], k, v, attn_mask=mask)[0].transpose(0, 1)
