"""Attention kernels: with `blockwise` the only place where scores are computed. Each equals `dense` in a test.

B rows, T query tokens, S key tokens, H heads, K key/value heads, C head channels. A query that sees no key gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.batch import (
    GLOBAL,
    Cached,
    Layout,
    OneDocument,
    Packed,
    Padded,
    Tokens,
    document_lengths,
    one_document,
    vars_in_order,
)
from fledge.nn.bias import AlibiBias, Bias, BucketBias, FirstBlock, uncached
from fledge.nn.blockwise import blockwise
from fledge.nn.cache import KeyValueCache
from fledge.nn.config import BigBird, Longformer, Prefix
from fledge.nn.distance import by_distance
from fledge.nn.pieces import from_globals, plan, plan_with_globals
from fledge.nn.visibility import Sight, by_place, first_block_weight, visible

BAND_FACTOR = 2  # documents longer than this many windows are attended band by band
# longer documents are attended block by block, which is faster from about these lengths on (bench/attention_length.py)
DENSE_TOKENS = 512  # instead of `dense`
MASKED_TOKENS = 1024  # instead of `masked` with a bias


def attend(
    q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, tokens: Tokens, layout: Layout, sight: Sight, bias: Bias | None
) -> Tensor:
    """Attention inside each document, the kernel chosen by layout and sight alone: [B, T, H, C]."""
    if sight.pattern is not None:
        return each_document(partial(patterned, sight=sight, bias=bias), q_BTHC, k_BTKC, v_BTKC, tokens.kind, layout)
    if isinstance(layout, OneDocument):
        return rows(q_BTHC, k_BTKC, v_BTKC, sight, bias)
    if isinstance(layout, Packed):
        return by_document(q_BTHC, k_BTKC, v_BTKC, layout, layout, sight, bias)
    if isinstance(layout, Padded) and q_BTHC.shape[1] > DENSE_TOKENS and not sight.causal and sight.window is None:
        whole_rows = partial(rows, sight=sight, bias=bias)
        return each_document(lambda q, k, v, _: whole_rows(q, k, v), q_BTHC, k_BTKC, v_BTKC, None, layout)
    if isinstance(layout, Padded):
        return padded_rows(q_BTHC, k_BTKC, v_BTKC, layout.lengths, layout.lengths, sight, bias)
    raise TypeError(f"{type(layout).__name__} is decoded by attend_cached")


def attend_cross(
    q_BTHC: Tensor,
    k_BSKC: Tensor,
    v_BSKC: Tensor,
    queries: tuple[Tokens, Layout],
    keys: tuple[Tokens, Layout],
    sight: Sight,
) -> Tensor:
    """Attention of each document's tokens to the source document of the same row and id: [B, T, H, C]."""
    q_layout, k_layout = queries[1], keys[1]
    if isinstance(q_layout, Packed) and isinstance(k_layout, Packed):
        return by_document(q_BTHC, k_BSKC, v_BSKC, q_layout, k_layout, sight, None)
    if isinstance(k_layout, OneDocument) and isinstance(q_layout, OneDocument):
        return rows(q_BTHC, k_BSKC, v_BSKC, sight, None)
    if isinstance(k_layout, Padded) and isinstance(q_layout, OneDocument | Padded):
        n_tokens = q_BTHC.shape[1]
        lengths = q_layout.lengths if isinstance(q_layout, Padded) else (n_tokens,) * q_BTHC.shape[0]
        return padded_rows(q_BTHC, k_BSKC, v_BSKC, lengths, k_layout.lengths, sight, None)
    return dense(q_BTHC, k_BSKC, v_BSKC, visible(queries[0], keys[0], sight), sight, None)


def each_document(
    kernel: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor],
    q_BTHC: Tensor,
    k_BTKC: Tensor,
    v_BTKC: Tensor,
    kind_BT: Tensor | None,
    layout: Layout,
) -> Tensor:
    """`kernel` for rows that are whole documents, on each document; padding gives zeros: [B, T, H, C]."""
    runs = runs_of(layout, *q_BTHC.shape[:2])
    sizes = [n * length for n, length, _ in runs]
    # split, not slices: the gradient of a slice is a whole tensor of zeros
    parts = zip(*(t.flatten(0, 1).split(sizes) for t in (q_BTHC, k_BTKC, v_BTKC)), strict=True)
    kinds = [None] * len(runs) if kind_BT is None else kind_BT.flatten().split(sizes)
    outputs = []
    for (n, length, there), (q, k, v), kind in zip(runs, parts, kinds, strict=True):
        if there:
            q, k, v = (t.unflatten(0, (n, length)) for t in (q, k, v))
            outputs.append(kernel(q, k, v, None if kind is None else kind.view(n, length)).flatten(0, 1))
        else:
            outputs.append(torch.zeros_like(q))
    return torch.cat(outputs).view(q_BTHC.shape)


def runs_of(layout: Layout, n_rows: int, n_tokens: int) -> list[tuple[int, int, bool]]:
    """(how many documents, tokens of each, whether they are there or padding) over the flattened tokens; neighbours
    of equal length go together."""
    lengths = [(n_tokens, True)] * n_rows
    if isinstance(layout, Packed):
        lengths = [(n, True) for n in document_lengths(layout)]
    if isinstance(layout, Padded):
        lengths = [part for n in layout.lengths for part in ((n, True), (n_tokens - n, False)) if part[0]]
    return [(len(list(same)), *one) for one, same in groupby(lengths)]


def patterned(
    q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, kind_BT: Tensor | None, sight: Sight, bias: Bias | None
) -> Tensor:
    """A pattern in rows that are whole documents: [B, T, H, C]. Global tokens cost a synchronisation a row."""
    n_tokens, pattern, device = q_BTHC.shape[1], sight.pattern, q_BTHC.device
    if n_tokens <= DENSE_TOKENS and not isinstance(pattern, BigBird):
        tokens = replace(one_document(torch.zeros_like(q_BTHC[:, :, 0, 0], dtype=torch.int64)), kind=kind_BT)
        return dense(q_BTHC, k_BTKC, v_BTKC, visible(tokens, tokens, sight), sight, bias)
    if isinstance(pattern, BigBird) and pattern.fixed and n_tokens > pattern.full_tokens:
        bias = FirstBlock(pattern, n_tokens, bias)
    if kind_BT is None or not isinstance(pattern, Longformer | Prefix):
        return blockwise(q_BTHC, k_BTKC, v_BTKC, plan(n_tokens, n_tokens, sight, device), sight, bias)
    outputs = []
    for q, k, v, kind in zip(q_BTHC.split(1), k_BTKC.split(1), v_BTKC.split(1), kind_BT, strict=True):
        pieces = plan_with_globals(n_tokens, globals_of(kind), sight)
        outputs.append(blockwise(q, k, v, pieces, sight, bias))
    return torch.cat(outputs)


def globals_of(kind_T: Tensor) -> Tensor:
    """Positions of the tokens of kind GLOBAL: int64 [G]."""
    return (kind_T == GLOBAL).nonzero().squeeze(1)


def from_global_tokens(q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, kind_BT: Tensor | None, scale: float) -> Tensor:
    """What tokens of kind GLOBAL take from their whole document, zeros for the others: [B, T, H, C]."""
    assert kind_BT is not None
    outputs = []
    for q, k, v, kind in zip(q_BTHC.split(1), k_BTKC.split(1), v_BTKC.split(1), kind_BT, strict=True):
        pieces = from_globals(q.shape[1], globals_of(kind))
        outputs.append(blockwise(q, k, v, pieces, Sight(scale, causal=False), None))
    return torch.cat(outputs)


def counted(bias: Bias | None, tokens: Tokens, sight: Sight) -> Callable[..., Tensor] | None:
    """For `dense`: the bias, and how often keys count under a fixed BigBird."""
    pattern = sight.pattern
    if not isinstance(pattern, BigBird) or not pattern.fixed:
        return bias
    often = first_block_weight(pattern, tokens, tokens)

    def both(q: Tensor, k: Tensor, q_at: int, k_at: int) -> Tensor:
        return often.to(q.dtype) if bias is None else often + bias(q, k, q_at, k_at)

    return both


def dense(
    q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, visible_BTS: Tensor, sight: Sight, bias: Bias | None = None
) -> Tensor:
    """The reference: every score, then a masked softmax. `visible_BTS` may have one row for all. [B, T, H, C]."""
    added = None if bias is None else bias(q_BTHC, k_BSKC, 0, 0)
    weights = probabilities(q_BTHC, k_BSKC, visible_BTS, sight, added).to(v_BSKC.dtype)
    if sight.dropout:
        weights = F.dropout(weights, sight.dropout)
    return (weights @ heads_first(v_BSKC, q_BTHC.shape[2])).transpose(1, 2)


def probabilities(q_BTHC: Tensor, k_BSKC: Tensor, visible_BTS: Tensor, sight: Sight, added: Tensor | None) -> Tensor:
    """What each query gives each key, float32 or better [B, H, T, S]; rows sum to 1, or to 0 where nothing is seen."""
    q, k = q_BTHC.transpose(1, 2), heads_first(k_BSKC, q_BTHC.shape[2])
    scores = (q @ k.transpose(-1, -2)) * sight.scale
    if added is not None:
        scores = scores + added
    if sight.softcap is not None:
        scores = torch.tanh(scores / sight.softcap) * sight.softcap
    mask = visible_BTS[:, None]
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = torch.softmax(exact.masked_fill(~mask, -torch.inf), -1)
    return torch.where(mask.any(-1, keepdim=True), weights, 0.0)  # softmax of nothing is NaN


def heads_first(x_BSKC: Tensor, n_heads: int) -> Tensor:
    """[B, H, S, C], key/value heads repeated to the number of heads."""
    x = x_BSKC.transpose(1, 2)
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], 1)


def rows(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Sight, bias: Bias | None) -> Tensor:
    """Rows that are whole documents, or whole documents' queries of a whole source: [B, T, H, C]."""
    n_keys = k_BSKC.shape[1]
    if by_bands(sight, bias, n_keys):
        return banded(q_BTHC, k_BSKC, v_BSKC, None, sight, bias)
    if bias is None and sight.softcap is None and sees_by_causality_alone(sight, n_keys):
        return fast(q_BTHC, k_BSKC, v_BSKC, sight)
    if n_keys > longest_dense(sight):
        plain = uncached(bias)
        if isinstance(plain, AlibiBias | BucketBias) and plain.shifts and sight.softcap is None:
            return by_distance(q_BTHC, k_BSKC, v_BSKC, sight, plain)
        return blockwise(q_BTHC, k_BSKC, v_BSKC, plan(q_BTHC.shape[1], n_keys, sight, q_BTHC.device), sight, bias)
    q_pos = torch.arange(q_BTHC.shape[1], device=q_BTHC.device)
    k_pos = torch.arange(n_keys, device=q_BTHC.device)
    mask = by_place(q_pos[:, None], k_pos[None, :], sight)[None]
    if sight.softcap is not None:
        return dense(q_BTHC, k_BSKC, v_BSKC, mask, sight, bias)
    added = None if bias is None else bias(q_BTHC, k_BSKC, 0, 0)
    return masked(q_BTHC, k_BSKC, v_BSKC, None if whole(sight) else mask, added, sight)


def longest_dense(sight: Sight) -> int:
    """Keys of the longest document whose scores are made all at once."""
    return MASKED_TOKENS if sight.softcap is None else DENSE_TOKENS


def by_bands(sight: Sight, bias: Bias | None, n_keys: int) -> bool:
    """Whether a window is attended band by band."""
    if sight.window is None or sight.softcap is not None or (bias is not None and not bias.shifts):
        return False
    return n_keys > BAND_FACTOR * reach(sight)


def whole(sight: Sight) -> bool:
    """Whether nothing of a document is hidden."""
    return not sight.causal and sight.window is None and sight.pattern is None


def reach(sight: Sight) -> int:
    """How far a windowed query sees to each side it sees."""
    assert sight.window is not None
    return sight.window if sight.causal else 2 * (sight.window // 2) + 1


def sees_by_causality_alone(sight: Sight, n_keys: int) -> bool:
    if sight.pattern is not None:
        return False
    return sight.window is None or n_keys <= (sight.window if sight.causal else sight.window // 2 + 1)


def fast(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, sight: Sight) -> Tensor:
    """torch's fused kernel, no mask built: [B, T, H, C]."""
    q, k, v = (t.transpose(1, 2) for t in (q_BTHC, k_BSKC, v_BSKC))
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.device.type == "cpu":
        # the fused CPU kernel takes equal head counts only; enable_gqa falls back to explicit scores
        groups, grouped = q.shape[1] // k.shape[1], False
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    mixed = F.scaled_dot_product_attention(
        q, k, v, dropout_p=sight.dropout, is_causal=sight.causal, scale=sight.scale, enable_gqa=grouped
    )
    return mixed.transpose(1, 2)


def masked(
    q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, seen: Tensor | None, added: Tensor | None, sight: Sight
) -> Tensor:
    """torch's kernel with a mask: `seen` bool [B|1, T, S], `added` [B|1, H, T, S]. Every query must see a key."""
    n_heads = q_BTHC.shape[2]
    mask = None if seen is None else seen[:, None]
    if added is not None:
        mask = added if mask is None else added.masked_fill(~mask, -torch.inf)
    q, k, v = q_BTHC.transpose(1, 2), heads_first(k_BSKC, n_heads), heads_first(v_BSKC, n_heads)
    mixed = F.scaled_dot_product_attention(q, k, v, mask, sight.dropout, scale=sight.scale)
    return mixed.transpose(1, 2)


def padded_rows(
    q_BTHC: Tensor,
    k_BSKC: Tensor,
    v_BSKC: Tensor,
    q_lengths: tuple[int, ...],
    k_lengths: tuple[int, ...],
    sight: Sight,
    bias: Bias | None,
) -> Tensor:
    """One document a row, padded at the end: padding gives zeros and is seen by nobody. [B, T, H, C]."""
    q_there = there(q_lengths, q_BTHC)
    if sight.causal:  # padding lies after every token, so causality hides it already
        mixed = rows(q_BTHC, k_BSKC, v_BSKC, sight, bias)
    elif by_bands(sight, bias, k_BSKC.shape[1]):
        mixed = banded(q_BTHC, k_BSKC, v_BSKC, k_lengths, sight, bias)
    else:
        q_pos, k_pos = (torch.arange(t.shape[1], device=q_BTHC.device) for t in (q_BTHC, k_BSKC))
        seen = by_place(q_pos[:, None], k_pos[None, :], sight)[None] & there(k_lengths, k_BSKC)[:, None, :]
        if sight.softcap is not None:
            return dense(q_BTHC, k_BSKC, v_BSKC, seen & q_there[:, :, None], sight, bias)
        added = None if bias is None else bias(q_BTHC, k_BSKC, 0, 0)
        mixed = masked(q_BTHC, k_BSKC, v_BSKC, seen | ~seen.any(-1, keepdim=True), added, sight)
        q_there = q_there & torch.tensor([n > 0 for n in k_lengths], device=q_there.device)[:, None]
    return mixed.masked_fill(~q_there[:, :, None, None], 0.0)


def there(lengths: tuple[int, ...], like_BT: Tensor) -> Tensor:
    """bool [B, T]: which tokens of padded rows exist."""
    return torch.arange(like_BT.shape[1], device=like_BT.device) < torch.tensor(lengths, device=like_BT.device)[:, None]


def banded(
    q_BTHC: Tensor,
    k_BTKC: Tensor,
    v_BTKC: Tensor,
    lengths: tuple[int, ...] | None,
    sight: Sight,
    bias: Bias | None,
) -> Tensor:
    """A window in time linear in length: blocks of queries see the blocks of keys around them. [B, T, H, C]."""
    assert sight.window is not None
    n_rows, n_tokens, n_heads, _ = q_BTHC.shape
    block = sight.window if sight.causal else max(1, sight.window // 2)
    n_blocks = -(-n_tokens // block)
    after = 0 if sight.causal else block
    pad = n_blocks * block - n_tokens
    q = F.pad(q_BTHC, (0, 0, 0, 0, 0, pad)).unflatten(1, (n_blocks, block))
    spread = (F.pad(t, (0, 0, 0, 0, block, pad + after)).unfold(1, 2 * block + after, block) for t in (k_BTKC, v_BTKC))
    k, v = (t.movedim(-1, 2).flatten(0, 1) for t in spread)  # [B·N, 2 or 3 blocks, K, C]
    starts = torch.arange(n_blocks, device=q.device)[:, None] * block
    q_pos = starts + torch.arange(block, device=q.device)
    k_pos = starts - block + torch.arange(2 * block + after, device=q.device)
    seen = by_place(q_pos[:, :, None], k_pos[:, None, :], sight) & (k_pos >= 0)[:, None, :]
    ends = torch.tensor([n_tokens] if lengths is None else lengths, device=q.device)
    seen = seen[None] & (k_pos[None] < ends[:, None, None])[:, :, None, :]
    seen = seen | ~seen.any(-1, keepdim=True)  # queries beyond the end: their rows are dropped below
    seen = seen.expand(n_rows, -1, -1, -1).flatten(0, 1)
    added = None if bias is None else bias(q[:, 0], k[:n_rows], 0, -block)
    mixed = masked(q.flatten(0, 1), k, v, seen, added, sight)
    return mixed.unflatten(0, (n_rows, n_blocks)).flatten(1, 2)[:, :n_tokens]


def by_document(
    q_BTHC: Tensor,
    k_BSKC: Tensor,
    v_BSKC: Tensor,
    q_layout: Packed,
    k_layout: Packed,
    sight: Sight,
    bias: Bias | None,
) -> Tensor:
    """Packed documents one by one (a mask would compute every cross score and throw it away). [B, T, H, C].

    Neighbours of equal length go together as one call.
    """
    runs: list[tuple[int, int, int]] = []  # (how many documents, query tokens each, key tokens each)
    for lengths in zip(document_lengths(q_layout), document_lengths(k_layout), strict=True):
        if runs and runs[-1][1:] == lengths:
            runs[-1] = (runs[-1][0] + 1, *lengths)
        else:
            runs.append((1, *lengths))
    q_sizes, k_sizes = [n * t for n, t, _ in runs], [n * s for n, _, s in runs]
    pieces = zip(
        q_BTHC.flatten(0, 1).split(q_sizes), k_BSKC.flatten(0, 1).split(k_sizes), v_BSKC.flatten(0, 1).split(k_sizes),
        runs, strict=True,
    )  # fmt: skip
    outputs = []
    for q, k, v, (n, n_queries, n_keys) in pieces:
        whole_rows = q.unflatten(0, (n, n_queries)), k.unflatten(0, (n, n_keys)), v.unflatten(0, (n, n_keys))
        outputs.append(rows(*whole_rows, sight, bias).flatten(0, 1))
    return torch.cat(outputs).view(q_BTHC.shape)


def attend_cached(
    q_BTHC: Tensor,
    k_BTKC: Tensor,
    v_BTKC: Tensor,
    tokens: Tokens,
    layout: Cached,
    cache: KeyValueCache,
    layer: int,
    sight: Sight,
    bias: Bias | None,
    ahead: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Decoding: write each row's new keys and values to its blocks, then attend to all it sees of its document.
    [B, T, H, C]. `ahead`: keys and values [K, P, C] of virtual tokens before every document.

    Rows are computed one by one, so that a row's bits don't depend on its company's lengths.
    """
    out = torch.zeros_like(q_BTHC)
    places = zip(layout.tables, layout.straight, layout.starts, layout.counts, strict=True)
    for b, (table, straight, start, count) in enumerate(places):
        k, v = k_BTKC[b, :count], v_BTKC[b, :count]
        cache.write(layer, table, start, k, v)
        begin = 0 if sight.window is None or sight.pattern is not None else max(0, start + 1 - sight.window)
        if ahead is not None and begin == 0:  # a window that begins later hides all of them
            read = zip(ahead, cache.read(layer, table, straight, 0, start + count), strict=True)
            keys, values = (torch.cat((first.to(kept.dtype), kept), 1) for first, kept in read)
            out[b, :count] = chunk(q_BTHC[b, :count], keys, values, start + ahead[0].shape[1], 0, sight, bias)
            continue
        if start == 0 and (count > 1 or bias is not None or sight.pattern is not None):
            if cache.int8:  # what later tokens will read
                k, v = (t.transpose(0, 1) for t in cache.read(layer, table, straight, 0, count))
            q, k, v = q_BTHC[b : b + 1, :count], k[None], v[None]
            if isinstance(sight.pattern, Prefix):  # the prefix must be whole in the first chunk
                part = Tokens(*(None if t is None else t[b : b + 1, :count] for t in vars_in_order(tokens)))  # type: ignore[arg-type]
                out[b : b + 1, :count] = dense(q, k, v, visible(part, part, sight), sight, bias)
            else:
                out[b : b + 1, :count] = rows(q, k, v, sight, bias)
            continue
        keys, values = cache.read(layer, table, straight, begin, start + count)
        if count == 1 and bias is None and sight.pattern is None:
            out[b, 0] = one_query(q_BTHC[b, 0], keys, values, sight)
        else:
            out[b, :count] = chunk(q_BTHC[b, :count], keys, values, start, begin, sight, bias)
    return out


def attend_cached_cross(
    q_BTHC: Tensor, sources: Sequence[tuple[Tensor, Tensor]], layout: Cached, sight: Sight
) -> Tensor:
    """Decoding: each row's tokens attend to keys and values [K, S, C] of a source of its own, one row after another as
    in `attend_cached`. [B, T, H, C]."""
    out = torch.zeros_like(q_BTHC)
    for b, ((keys, values), count) in enumerate(zip(sources, layout.counts, strict=True)):
        if count == 1:
            out[b, 0] = one_query(q_BTHC[b, 0], keys, values, sight)
        else:
            k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
            out[b : b + 1, :count] = rows(q_BTHC[b : b + 1, :count], k, v, sight, None)
    return out


def one_query(q_HC: Tensor, keys_KSC: Tensor, values_KSC: Tensor, sight: Sight) -> Tensor:
    """One token against the S it sees of its document: [H, C]."""
    q_KGC = q_HC.view(keys_KSC.shape[0], -1, q_HC.shape[-1]) * sight.scale
    scores = torch.bmm(q_KGC, keys_KSC.transpose(1, 2))
    if sight.softcap is not None:
        scores = torch.tanh(scores / sight.softcap) * sight.softcap
    return torch.bmm(torch.softmax(scores, -1), values_KSC).view(q_HC.shape)


def chunk(
    q_THC: Tensor, keys_KSC: Tensor, values_KSC: Tensor, start: int, begin: int, sight: Sight, bias: Bias | None
) -> Tensor:
    """T tokens at positions start.. against the S keys of positions begin..start + T (torch's is_causal would align the
    mask top-left)."""
    n_tokens, n_keys = q_THC.shape[0], keys_KSC.shape[1]
    q_pos = torch.arange(start, start + n_tokens, device=q_THC.device)
    k_pos = torch.arange(begin, begin + n_keys, device=q_THC.device)
    seen = by_place(q_pos[:, None], k_pos[None, :], sight)[None]
    q, k, v = q_THC[None], keys_KSC.transpose(0, 1)[None], values_KSC.transpose(0, 1)[None]
    added = None if bias is None else bias(q, k, start, begin)
    if sight.softcap is not None:
        weights = probabilities(q, k, seen, sight, added).to(v.dtype)
        return (weights @ heads_first(v, q.shape[2])).transpose(1, 2)[0]
    return masked(q, k, v, seen, added, sight)[0]
