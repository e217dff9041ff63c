"""Attention, feed-forward, and the block they form around the residual stream.

B rows, T tokens, D width, H heads, K key/value heads, C head channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.batch import Cached, Layout, Tokens
from fledge.nn.cache import KeyValueCache
from fledge.nn.config import Activation, Dense, Heads, LayerConfig, StackConfig
from fledge.nn.kernels import attend, attend_cached
from fledge.nn.linear import Joined, Linear
from fledge.nn.norm import make_norm
from fledge.nn.position import rotate

Angles = tuple[Tensor, Tensor]


@dataclass
class Context:
    """What every block of one forward pass shares: tokens, layout, rotary angles by layer kind, and the cache."""

    tokens: Tokens
    layout: Layout
    angles: dict[object, Angles]
    cache: KeyValueCache | None = None


class Attention(nn.Module):
    """Multi-head or grouped-query attention over the visible tokens. x [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, config: Heads, position: object, causal: bool, index: int):
        super().__init__()
        self.config, self.position, self.causal, self.index = config, position, causal, index
        inner, kv = config.n_heads * config.head_channels, config.n_kv_heads * config.head_channels
        self.qkv = Joined(width, {"q": inner, "k": kv, "v": kv}, config.qkv_bias)
        self.out = Linear(inner, width, config.out_bias)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        config = self.config
        heads = self.qkv(x).unflatten(-1, (-1, config.head_channels))  # [B, T, H + 2K, C]
        turned, v = heads.split((config.n_heads + config.n_kv_heads, config.n_kv_heads), 2)
        if self.position is not None:
            turned = rotate(turned, context.angles[self.position])
        q, k = turned.split((config.n_heads, config.n_kv_heads), 2)
        if isinstance(context.layout, Cached):
            assert context.cache is not None
            mixed = attend_cached(q, k, v, context.layout, context.cache, self.index)
        else:
            mixed = attend(q, k, v, context.tokens, context.layout, self.causal)
        return self.out(mixed.flatten(2))


class FeedForward(nn.Module):
    """down(activation(up(x))), or down(activation(gate(x)) · up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, config: Dense):
        super().__init__()
        self.activation = config.activation
        self.gated = config.gated
        names = ("gate", "up") if config.gated else ("up",)
        self.inward = Joined(width, dict.fromkeys(names, config.hidden), config.bias)
        self.down = Linear(config.hidden, width, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inward(x)
        if not self.gated:
            return self.down(activate(inner, self.activation))
        if self.activation == "silu" and torch.is_grad_enabled() and inner.requires_grad:
            return self.down(GatedSilu.apply(inner))
        gate, up = inner.chunk(2, -1)
        return self.down(activate(gate, self.activation) * up)


class GatedSilu(torch.autograd.Function):
    """silu(gate) · up of inner = [gate, up] side by side: [..., 2 H] -> [..., H].

    Written out so that the gradient of both halves is computed in place, where autograd would glue two tensors.
    """

    @staticmethod
    def forward(ctx, inner: Tensor) -> Tensor:  # type: ignore[override]
        gate, up = inner.chunk(2, -1)
        ctx.save_for_backward(inner)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[override]
        (inner,) = ctx.saved_tensors
        gate, up = inner.chunk(2, -1)
        result = torch.empty_like(inner)
        grad_gate, grad_up = result.chunk(2, -1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return result


def activate(x: Tensor, name: Activation) -> Tensor:
    if name == "silu":
        return F.silu(x)
    if name == "relu":
        return F.relu(x)
    return F.gelu(x, approximate="tanh" if name == "gelu_tanh" else "none")


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward; each of three norm slots may be filled.

    "before": on the sublayer's input (pre-norm); "after": on its output (sandwich, OLMo-2);
    "residual": on the sum (post-norm).
    """

    def __init__(self, stack: StackConfig, layer: LayerConfig, index: int):
        super().__init__()
        self.attention = Attention(stack.width, layer.mixer, layer.position, stack.causal, index)
        self.ffn = FeedForward(stack.width, layer.ffn)
        self.attention_norms = nn.ModuleDict({slot: make_norm(stack.norm, stack.width) for slot in stack.norm_at})
        self.ffn_norms = nn.ModuleDict({slot: make_norm(stack.norm, stack.width) for slot in stack.norm_at})
        self.slots = frozenset(stack.norm_at)
        self.dropout = stack.dropout

    def forward(self, x: Tensor, context: Context) -> Tensor:
        norms = self.attention_norms
        inward = norms["before"](x) if "before" in self.slots else x
        x = self.join(x, self.attention(inward, context), norms)
        norms = self.ffn_norms
        inward = norms["before"](x) if "before" in self.slots else x
        return self.join(x, self.ffn(inward), norms)

    def join(self, x: Tensor, y: Tensor, norms: nn.ModuleDict) -> Tensor:
        if "after" in self.slots:
            y = norms["after"](y)
        if self.dropout and self.training:
            y = F.dropout(y, self.dropout)
        x = x + y
        return norms["residual"](x) if "residual" in self.slots else x


class Stack(nn.Module):
    """Blocks in order, then a last norm when the blocks normalise before. x [B, T, D] -> [B, T, D]."""

    def __init__(self, config: StackConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Block(config, layer, i) for i, layer in enumerate(config.layers))
        self.norm = make_norm(config.norm, config.width) if "before" in config.norm_at else None

    def blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def forward(self, x: Tensor, context: Context) -> Tensor:
        if self.config.dropout and self.training:
            x = F.dropout(x, self.config.dropout)
        for layer in self.layers:
            x = layer(x, context)
        return x if self.norm is None else self.norm(x)


def angles_for(table: dict[object, Angles], tokens: Tokens, in_order: bool) -> dict[object, Angles]:
    """Rotary (cos, sin) of a batch by layer position, each [B|1, T, 1, C/2]. `in_order`: every row counts 0, 1, 2…"""
    angles: dict[object, Angles] = {}
    for position, (cos, sin) in table.items():
        if in_order:
            n_tokens = tokens.ids.shape[1]
            angles[position] = (cos[None, :n_tokens, None], sin[None, :n_tokens, None])
        else:
            angles[position] = (cos[tokens.pos][:, :, None], sin[tokens.pos][:, :, None])
    return angles
