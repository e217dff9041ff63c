"""Attention modules: maps in, kernel, map out. Scores themselves are computed in `fledge.nn.kernels` alone.

B rows, T tokens, D width, H heads, K key/value heads, C head channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from fledge.batch import GLOBAL, Cached, Layout, Tokens
from fledge.errors import ConfigError
from fledge.nn.bias import Bias
from fledge.nn.cache import KeyValueCache
from fledge.nn.config import (
    Alibi,
    Buckets,
    Disentangled,
    Heads,
    Kernelised,
    LayerConfig,
    LowRank,
    Norm,
    Rope,
    StackConfig,
)
from fledge.nn.disentangled import DistanceBias, DistanceMaps
from fledge.nn.kernels import (
    attend,
    attend_cached,
    attend_cached_cross,
    attend_cross,
    each_document,
    from_global_tokens,
)
from fledge.nn.linear import Joined, Linear
from fledge.nn.linear_attention import kernelised
from fledge.nn.low_rank import low_rank
from fledge.nn.norm import HeadNorms, make_norm
from fledge.nn.position import rotate
from fledge.nn.virtual import Prefix
from fledge.nn.visibility import Sight, kinds

Angles = tuple[Tensor, Tensor]


@dataclass
class Context:
    """What every block of one forward pass shares: tokens, layout, rotary angles by position config, the stack's bias
    or its vectors of distances [R, D], the cache, for a decoder with an encoder the source's output with its tokens and
    layout, and the keys and values of virtual tokens."""

    tokens: Tokens
    layout: Layout
    angles: dict[object, Angles]
    bias: Bias | None = None
    cache: KeyValueCache | None = None
    source: Tensor | None = None
    source_tokens: tuple[Tokens, Layout] | None = None
    distances: Tensor | None = None
    prefix: Prefix | None = None


def sight_of(mixer: Heads, causal: bool, layer: LayerConfig | None = None) -> Sight:
    """What a mixer sees, as the kernels want it."""
    scale = 1.0 / math.sqrt(mixer.head_channels) if mixer.scale is None else mixer.scale
    window, pattern = (layer.window, layer.pattern) if layer is not None else (None, None)
    return Sight(scale, causal, window, pattern, mixer.softcap)


class Attention(nn.Module):
    """Attention of a document's tokens to each other. x [B, T, D] -> [B, T, D]."""

    def __init__(self, stack: StackConfig, layer: LayerConfig):
        super().__init__()
        config = layer.mixer
        self.config, self.position = config, layer.position
        self.sight, self.dropout = sight_of(config, stack.causal, layer), 0.0
        inner, kv = config.n_heads * config.head_channels, config.n_kv_heads * config.head_channels
        sizes = {"q": inner, "k": kv, "v": kv}
        unbiased = () if config.key_bias else ("k",)
        self.qkv = Joined(stack.width, sizes, config.qkv_bias, unbiased)
        self.global_qkv = Joined(stack.width, sizes, config.qkv_bias, unbiased) if config.global_maps else None
        self.distances: DistanceMaps | None = None
        if isinstance(layer.position, Disentangled) and not layer.position.shared_maps:
            self.distances = DistanceMaps(layer.position, stack.width, config)
        self.q_norm, self.k_norm = qk_norms(config, stack.norm)
        self.projection: nn.Parameter | None = None
        if isinstance(config, LowRank):
            self.projection = nn.Parameter(torch.empty(config.rank, config.tokens))
        self.out = Linear(inner, stack.width, config.out_bias)

    def forward(self, x: Tensor, context: Context, index: int) -> Tensor:
        q, k, v = self.project(x, context, self.qkv)
        if context.prefix is not None and context.prefix.place is not None:
            k, v = context.prefix.put(k, v, index)
        return self.out(self.mix(q, k, v, x, context, index).flatten(2))

    def project(self, x: Tensor, context: Context, maps: Joined | nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, T, H, C], keys and values [B, T, K, C], normalised, cut off and turned."""
        config = self.config
        if isinstance(maps, Joined) and maps.part_compiled(x):
            q, k, v = (part.unflatten(-1, (-1, config.head_channels)) for part in maps(x, apart=True))
            if self.q_norm is not None and self.k_norm is not None:
                q, k = normalised(self.q_norm, q, config), normalised(self.k_norm, k, config)
            q, k, v = (cut_off(part, config.clip) for part in (q, k, v))
            if isinstance(self.position, Rope):
                q, k = (rotate(one, context.angles[self.position]) for one in (q, k))
            return q, k, v
        heads = maps(x).unflatten(-1, (-1, config.head_channels))  # [B, T, H + 2K, C]
        turned, v = heads.split((config.n_heads + config.n_kv_heads, config.n_kv_heads), 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = turned.split((config.n_heads, config.n_kv_heads), 2)
            turned = torch.cat((normalised(self.q_norm, q, config), normalised(self.k_norm, k, config)), 2)
        turned, v = cut_off(turned, config.clip), cut_off(v, config.clip)
        if isinstance(self.position, Rope):
            turned = rotate(turned, context.angles[self.position])
        q, k = turned.split((config.n_heads, config.n_kv_heads), 2)
        return q, k, v

    def mix(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, context: Context, index: int) -> Tensor:
        tokens, layout = context.tokens, context.layout
        if isinstance(self.config, Kernelised):
            return kernelised(q, k, v, tokens, layout, self.sight.causal, context.cache, index)
        if self.projection is not None:
            return low_rank(q, k, v, layout, self.projection, self.sight)
        sight = in_training(self, self.sight)
        bias = self.bias(context)
        if isinstance(layout, Cached):
            assert context.cache is not None
            ahead = None if context.prefix is None else context.prefix.ahead(index)
            return attend_cached(q, k, v, tokens, layout, context.cache, index, self.sight, bias, ahead)
        mixed = attend(q, k, v, tokens, layout, sight, bias)
        if self.global_qkv is None or tokens.kind is None:
            return mixed
        return self.with_globals(mixed, x, context)

    def bias(self, context: Context) -> Bias | None:
        """What is added to the scores: the stack's bias, or this layer's reading of the stack's distances."""
        if isinstance(self.position, Disentangled):
            assert context.distances is not None and isinstance(self.qkv, Joined)
            maps = self.distances if self.distances is not None else self.qkv
            return DistanceBias(self.position, self.config, self.sight.scale, context.distances, maps)
        return context.bias if isinstance(self.position, Alibi | Buckets) else None

    def with_globals(self, mixed: Tensor, x: Tensor, context: Context) -> Tensor:
        """Tokens of kind GLOBAL attend to everything through maps of their own (Longformer)."""
        assert self.global_qkv is not None
        q, k, v = self.project(x, context, self.global_qkv)
        kernel = partial(from_global_tokens, scale=self.sight.scale)
        everything = each_document(kernel, q, k, v, kinds(context.tokens), context.layout)
        chosen = (kinds(context.tokens) == GLOBAL)[:, :, None, None]
        return torch.where(chosen, everything, mixed)


class CrossAttention(nn.Module):
    """Attention of a decoder's tokens to the encoder's output. x [B, T, D] -> [B, T, D]."""

    def __init__(self, stack: StackConfig, config: Heads):
        super().__init__()
        self.config = config
        self.sight, self.dropout = sight_of(config, causal=False), 0.0
        inner, kv = config.n_heads * config.head_channels, config.n_kv_heads * config.head_channels
        self.q = Linear(stack.width, inner, config.qkv_bias)
        self.kv = Joined(stack.width, {"k": kv, "v": kv}, config.qkv_bias)
        self.out = Linear(inner, stack.width, config.out_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        config, layout = self.config, context.layout
        q = self.q(x).unflatten(-1, (config.n_heads, config.head_channels))
        if isinstance(layout, Cached):
            return self.out(attend_cached_cross(q, self.kept(layout, context.cache), layout, self.sight).flatten(2))
        if context.source is None or context.source_tokens is None:
            raise ConfigError("decoder: expected the encoder's output to attend to, got none; give source tokens")
        k, v = self.keys_and_values(context.source)
        sight = in_training(self, self.sight)
        return self.out(attend_cross(q, k, v, (context.tokens, layout), context.source_tokens, sight).flatten(2))

    def keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Of the encoder's output [B, S, D]: [B, S, K, C] each."""
        if isinstance(self.kv, Joined) and self.kv.part_compiled(source):
            k, v = (part.unflatten(-1, (-1, self.config.head_channels)) for part in self.kv(source, apart=True))
        else:
            k, v = self.kv(source).unflatten(-1, (-1, self.config.head_channels)).split(self.config.n_kv_heads, 2)
        return k, v

    def kept(self, layout: Cached, cache: KeyValueCache | None) -> list[tuple[Tensor, Tensor]]:
        """What the cache keeps of each row's source."""
        assert cache is not None
        kept = [cache.sources[name][self] for name in layout.sources if name in cache.sources]
        if len(kept) != len(layout.tables):
            raise ConfigError(
                f"decoder: expected a kept source for each of {len(layout.tables)} rows, got {len(kept)}; have the "
                "cache keep them (Transformer.keep_source) and name them in the layout"
            )
        return kept


def in_training(mixer: Attention | CrossAttention, sight: Sight) -> Sight:
    """`sight` with the dropout of a pass in training."""
    return replace(sight, dropout=mixer.dropout) if mixer.dropout and mixer.training else sight


def qk_norms(config: Heads, norm: Norm) -> tuple[nn.Module | None, nn.Module | None]:
    if not config.qk_norm:
        return None, None
    if config.qk_norm == "head":
        return make_norm(norm, config.head_channels), make_norm(norm, config.head_channels)
    channels = config.head_channels
    if config.qk_norm == "own":
        return HeadNorms(config.n_heads, channels, norm), HeadNorms(config.n_kv_heads, channels, norm)
    return make_norm(norm, config.n_heads * channels), make_norm(norm, config.n_kv_heads * channels)


def cut_off(x: Tensor, clip: float | None) -> Tensor:
    return x if clip is None else x.clamp(-clip, clip)


def normalised(norm: nn.Module, x_BTHC: Tensor, config: Heads) -> Tensor:
    if config.qk_norm != "whole":
        return norm(x_BTHC)
    return norm(x_BTHC.flatten(2)).view(x_BTHC.shape)
