"""Where a scale of a map's inputs can be folded into what comes before it, leaving what the model computes unchanged.

- attention's q, k, v and the maps inward of a feed-forward layer: into the norm before them, where it has a weight and
  nothing else reads it;
- attention's output map: into the values, as attention is linear in them; with fewer key/value heads than heads, one
  scale for all heads that share a value;
- the map down of a feed-forward layer: into the map up, where that is gated, or where ReLU follows, which is linear for
  scales above 0.

A map that is quantized already takes the scale in its own scales: they are one for each output. I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fledge.compress.units import Unit
from fledge.nn.attention import Attention
from fledge.nn.block import Block
from fledge.nn.config import Disentangled, Heads
from fledge.nn.feedforward import FeedForward
from fledge.nn.linear import Linear
from fledge.nn.norm import LayerNorm, RMSNorm
from fledge.nn.quantized import Int4Linear, Int8Linear


@dataclass(frozen=True)
class Fold:
    """`tie` makes scales [I] equal where they have to be; `divide` divides what comes before by them."""

    tie: Callable[[Tensor], Tensor]
    divide: Callable[[Tensor], None]


def fold_of(unit: Unit) -> Fold | None:
    """The fold of a unit's inputs, or None where there is no exact one."""
    parent, last = unit.parent, unit.name.rpartition(".")[2]
    if isinstance(parent, Attention) and last == "qkv":
        return into_norm(unit.block, unit.block.attention_norms)
    if isinstance(parent, Attention) and last == "out":
        return into_values(parent)
    if isinstance(parent, FeedForward) and last == "inward" and parent is unit.block.ffn:
        return into_norm(unit.block, unit.block.ffn_norms)
    if isinstance(parent, FeedForward) and last == "down":
        return into_inner(parent)
    return None


def into_norm(block: Block, norms: nn.ModuleDict) -> Fold | None:
    if block.parallel == "one_norm" or "before" not in norms:
        return None
    norm = norms["before"]
    if not isinstance(norm, LayerNorm | RMSNorm) or norm.weight is None:
        return None
    if block.attention.global_qkv is not None or isinstance(block.attention.position, Disentangled):
        return None  # maps of global tokens read the norm too, and distances go through the same keys
    weight, offset, bias = norm.weight, norm.offset, getattr(norm, "bias", None)

    def divide(scales: Tensor) -> None:
        weight.data = ((weight.data.float() + offset) / scales - offset).to(weight.dtype)
        if bias is not None:
            bias.data = (bias.data.float() / scales).to(bias.dtype)

    return Fold(lambda scales: scales, divide)


def into_values(attention: Attention) -> Fold | None:
    heads = attention.config
    if type(heads) is not Heads or attention.global_qkv is not None or heads.clip is not None:
        return None  # values that are cut off are not linear
    shape = (heads.n_kv_heads, heads.n_heads // heads.n_kv_heads, heads.head_channels)

    def tie(scales: Tensor) -> Tensor:
        return scales.view(shape).mean(1, keepdim=True).expand(shape).reshape(-1)

    values = attention.qkv.get_submodule("v")
    return Fold(tie, lambda scales: divide_outputs(values, scales.view(shape)[:, 0].flatten()))


def into_inner(ffn: FeedForward) -> Fold | None:
    if not ffn.gated and ffn.activation != "relu":
        return None
    return Fold(lambda scales: scales, lambda scales: divide_outputs(ffn.inward.get_submodule("up"), scales))


def divide_outputs(module: nn.Module, scales: Tensor) -> None:
    """Divide what a linear map gives by scales [O]."""
    if isinstance(module, Int8Linear | Int4Linear):
        module.scale = module.scale / (scales if module.scale.dim() == 1 else scales[:, None])
    else:
        assert isinstance(module, Linear)
        module.weight.data = (module.weight.data.float() / scales[:, None]).to(module.weight.dtype)
    if isinstance(module.bias, nn.Parameter):
        module.bias.data = (module.bias.data.float() / scales).to(module.bias.dtype)


@torch.no_grad()
def apply(fold: Fold, unit: Unit, scales: Tensor) -> None:
    """Multiply the columns of a unit's weights by `scales` [I] and divide what comes before."""
    for one in unit.maps.values():
        one.weight.data = (one.weight.data.float() * scales).to(one.weight.dtype)
    fold.divide(scales)
