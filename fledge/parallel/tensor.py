"""Matrices and heads split over the tensor axis (Shoeybi et al. 2019, arXiv 1909.08053; sequence parts: Korthikanti et
al. 2022, arXiv 2205.05198). B rows, T tokens, D width, P processes.

Maps into heads and hidden channels are cut by output, maps out of them by input, so that one sum a sublayer remains;
the vocabulary is cut by entry. Functions on a built model: its names and its config stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.transformer import Transformer
from fledge.nn.attention import Attention, CrossAttention
from fledge.nn.bias import AlibiBias, BucketBias
from fledge.nn.block import Block, Stack
from fledge.nn.config import Heads
from fledge.nn.feedforward import Experts, FeedForward
from fledge.nn.linear import Joined, Linear, pack
from fledge.optim.part import Box
from fledge.parallel.exchange import CutTokens, Enter, EnterTokens, JoinTokens, Leave, LeaveTokens
from fledge.parallel.mesh import Line
from fledge.parallel.vocabulary import Vocabulary, split_vocabulary


@dataclass(frozen=True)
class Cut:
    """A parameter's parts along the tensor axis: process i has `sizes[i]` of dimension `dim`."""

    dim: int
    sizes: tuple[int, ...]

    def box(self, shape: tuple[int, ...], index: int) -> Box:
        """Where process `index`'s part of a tensor of `shape` lies."""
        offsets, sizes = [0] * len(shape), list(shape)
        offsets[self.dim], sizes[self.dim] = sum(self.sizes[:index]), self.sizes[index]
        return tuple(offsets), tuple(sizes)


class RowLinear(Linear):
    """A Linear that has some of its input's channels: the sum over processes comes before the bias."""

    leave: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class PackedRows(nn.Module):
    """The packed copy of a RowLinear."""

    def __init__(self, rows: RowLinear):
        super().__init__()
        self.leave, self.bias, rows.bias = rows.leave, rows.bias, None
        self.product = pack(rows)

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(self.product(x))
        return y if self.bias is None else y + self.bias


@dataclass
class Split:
    """What has been cut so far, and which parameters see only a part of what their gradient is made of: they are summed
    over the line."""

    model: Transformer
    line: Line
    cuts: dict[str, Cut]
    partial: set[str]

    def __post_init__(self) -> None:
        self.names = {id(p): name for name, p in self.model.named_parameters()}

    def cut(self, owner: nn.Module, attribute: str, dim: int, sizes: list[int] | None = None) -> None:
        """Keep this process's part of a parameter."""
        parameter = getattr(owner, attribute)
        if parameter is None:
            return
        sizes = sizes or [parameter.shape[dim] // self.line.size] * self.line.size
        part = parameter.detach().split(sizes, dim)[self.line.index].clone()
        self.cuts[self.names[id(parameter)]] = Cut(dim, tuple(sizes))
        setattr(owner, attribute, nn.Parameter(part, requires_grad=parameter.requires_grad))

    def sees_a_part(self, owner: nn.Module | None) -> None:
        if owner is not None:
            self.partial |= {self.names[id(p)] for p in owner.parameters() if id(p) in self.names}


@dataclass
class Flow:
    """How a stack's residual stream enters and leaves the matrices: as a whole, or by parts of its tokens."""

    line: Line
    sequence: bool
    n_tokens: int = 0

    def enter(self, x: Tensor) -> Tensor:
        return EnterTokens.apply(x, self.line, self.n_tokens) if self.sequence else Enter.apply(x, self.line)

    def leave(self, x: Tensor) -> Tensor:
        return LeaveTokens.apply(x, self.line) if self.sequence else Leave.apply(x, self.line)

    def begin(self, x: Tensor) -> Tensor:
        self.n_tokens = x.shape[1]
        return CutTokens.apply(x, self.line)

    def end(self, x: Tensor) -> Tensor:
        return JoinTokens.apply(x, self.line, self.n_tokens)


def split_tensor(model: Transformer, line: Line, sequence: bool) -> tuple[dict[str, Cut], set[str]]:
    """Keep this process's part of a built model, in place. Gives the cuts by name, and the names of parameters whose
    gradients must be summed over the line."""
    split = Split(model, line, {}, set())
    with torch.no_grad():
        for stack in (model.encoder, model.decoder):
            if stack is not None:
                split_stack(split, stack, Flow(line, sequence))
        split_vocabulary(model, Vocabulary(line, model.config), split.cut)
    return split.cuts, split.partial


def split_stack(split: Split, stack: Stack, flow: Flow) -> None:
    for block in stack.blocks():
        split_block(split, block, flow)
    if isinstance(stack.bias, AlibiBias):
        share = len(stack.bias.slopes) // flow.line.size
        stack.bias.slopes = stack.bias.slopes[flow.line.index * share :][:share]
    if isinstance(stack.bias, BucketBias):
        split.cut(stack.bias, "weight", 1)
    if flow.sequence:
        stack.inputs.register_forward_hook(lambda module, given, x: flow.begin(x))
        stack.register_forward_hook(lambda module, given, x: flow.end(x))
        split.sees_a_part(stack.norm)


def split_block(split: Split, block: Block, flow: Flow) -> None:
    split_attention(split, block.attention, flow)
    if block.cross is not None:
        split_cross(split, block.cross, flow)
    if isinstance(block.ffn, Experts):
        split_experts(split, block.ffn, flow)
    else:
        assert isinstance(block.ffn, FeedForward)
        columns(split, block.ffn.inward, flow.enter)
        rows(split, block.ffn, "down", flow)
    if flow.sequence:
        for norms in (block.attention_norms, getattr(block, "cross_norms", None), block.ffn_norms):
            split.sees_a_part(norms)


def split_attention(split: Split, attention: Attention, flow: Flow) -> None:
    attention.config = own_heads(attention.config, flow.line)
    for maps in (attention.qkv, attention.global_qkv):
        if maps is not None:
            columns(split, maps, flow.enter)
    rows(split, attention, "out", flow)
    for norm in (attention.q_norm, attention.k_norm):
        split.sees_a_part(norm)
    if attention.projection is not None:
        split.partial.add(split.names[id(attention.projection)])


def split_cross(split: Split, cross: CrossAttention, flow: Flow) -> None:
    cross.config = own_heads(cross.config, flow.line)
    columns(split, cross.q, flow.enter)
    columns(split, cross.kv, lambda x: Enter.apply(x, flow.line))  # the encoder's output comes as a whole
    rows(split, cross, "out", flow)


def split_experts(split: Split, ffn: Experts, flow: Flow) -> None:
    """Some channels of every expert, and one sum for all that a token chose. Each process routes by itself, on the same
    bits; not for training, where the router's gradient would be a part of it."""
    for expert in ffn.experts:
        assert isinstance(expert, FeedForward)
        columns(split, expert.inward, flow.enter)
        split.cut(expert.down, "weight", 1)
        if flow.line.index:
            expert.down.bias = None  # which counts once
    ffn.register_forward_hook(lambda module, given, mixed: flow.leave(mixed))


def own_heads(config: Heads, line: Line) -> Heads:
    return replace(config, n_heads=config.n_heads // line.size, n_kv_heads=config.n_kv_heads // line.size)


def columns(split: Split, maps: Joined | Linear, enter: Callable[[Tensor], Tensor]) -> None:
    """Cut maps by output. Queries, keys and values, or gate and up, are each cut by themselves."""
    for one in maps.maps() if isinstance(maps, Joined) else [maps]:
        split.cut(one, "weight", 0)
        split.cut(one, "bias", 0)
    maps.register_forward_pre_hook(lambda module, given: enter(given[0]))


def rows(split: Split, owner: nn.Module, attribute: str, flow: Flow) -> None:
    """Cut a map by input."""
    linear = getattr(owner, attribute)
    split.cut(linear, "weight", 1)
    linear.__class__ = RowLinear
    linear.leave = flow.leave
    if flow.sequence and linear.bias is not None:
        split.partial.add(split.names[id(linear.bias)])
