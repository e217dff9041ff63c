"""The block around the residual stream, and the stack of blocks with what goes in before the first.

B rows, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fledge.batch import OneDocument, Padded, Tokens
from fledge.nn.attention import Angles, Attention, Context, CrossAttention
from fledge.nn.bias import Once, make_bias
from fledge.nn.config import Disentangled, LayerConfig, StackConfig
from fledge.nn.disentangled import Convolution, DistanceTable
from fledge.nn.feedforward import Experts, make_ffn
from fledge.nn.linear import Linear
from fledge.nn.norm import make_norm
from fledge.nn.position import sines
from fledge.nn.visibility import kinds


class Block(nn.Module):
    """x + attention(norm(x)), then the same with cross-attention and feed-forward; three norm slots may be filled.

    "before": on the sublayer's input (pre-norm); "after": on its output (sandwich, OLMo-2);
    "residual": on the sum (post-norm). Parallel blocks add attention and feed-forward of the same residual.
    """

    def __init__(self, stack: StackConfig, layer: LayerConfig):
        super().__init__()
        self.slots, self.dropout, self.parallel = frozenset(stack.norm_at), stack.dropout, stack.parallel
        self.attention = Attention(stack, layer)
        self.cross = CrossAttention(stack, stack.cross) if stack.cross is not None else None
        self.ffn = make_ffn(stack.width, layer.ffn)
        first = [slot for slot in stack.norm_at if layer.input_norm or slot != "before"]
        second = () if stack.parallel == "one_norm" else stack.norm_at
        self.attention_norms = nn.ModuleDict({slot: make_norm(stack.norm, stack.width) for slot in first})
        if self.cross is not None:
            self.cross_norms = nn.ModuleDict({slot: make_norm(stack.norm, stack.width) for slot in stack.norm_at})
        self.ffn_norms = nn.ModuleDict({slot: make_norm(stack.norm, stack.width) for slot in second})

    def forward(self, x: Tensor, context: Context, index: int) -> Tensor:
        inward = before(self.attention_norms, x)
        mixed = self.attention(inward, context, index)
        if self.parallel:
            ffn_inward = inward if self.parallel == "one_norm" else before(self.ffn_norms, x)
            return self.join(x, mixed + self.ffn(ffn_inward), self.attention_norms)
        x = self.join(x, mixed, self.attention_norms)
        if self.cross is not None:
            x = self.join(x, self.cross(before(self.cross_norms, x), context), self.cross_norms)
        return self.join(x, self.ffn(before(self.ffn_norms, x)), self.ffn_norms)

    def join(self, x: Tensor, y: Tensor, norms: nn.ModuleDict) -> Tensor:
        if "after" in self.slots:
            y = norms["after"](y)
        if self.dropout and self.training:
            y = F.dropout(y, self.dropout)
        x = x + y
        return norms["residual"](x) if "residual" in self.slots else x


def before(norms: nn.ModuleDict, x: Tensor) -> Tensor:
    return norms["before"](x) if "before" in norms else x


class InputLayer(nn.Module):
    """Token embedding [B, T, E] -> what the first block reads [B, T, D]: scale, positions, kinds, norm, width (or that
    behind the scale)."""

    def __init__(self, stack: StackConfig):
        super().__init__()
        config = stack.inputs
        self.config, self.dropout = config, stack.dropout
        narrow = config.width or stack.width
        width = stack.width if config.widen_first else narrow
        self.positions = table(config.rows, width) if config.positions == "learned" else None
        self.kinds = table(config.kinds, width) if config.kinds else None
        self.norm = make_norm(stack.norm, width) if config.norm else None
        self.widen = Linear(narrow, stack.width, config.width_bias) if config.width else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        config = self.config
        if config.scale != 1.0:
            x = x * torch.tensor(config.scale, dtype=x.dtype)
        if self.widen is not None and config.widen_first:
            x = self.widen(x)
        if config.positions:
            x = x + self.places(context, x)
        if self.kinds is not None:
            x = x + self.kinds(kinds(context.tokens) if config.kinds > 1 else torch.zeros_like(context.tokens.ids))
        if self.norm is not None:
            x = self.norm(x)
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
        return x if self.widen is None or config.widen_first else self.widen(x)

    def places(self, context: Context, x: Tensor) -> Tensor:
        """What the positions add, [T, E] or [B, T, E]."""
        in_order, offset = counts_up(context), self.config.offset
        if self.positions is None:
            pos = torch.arange(x.shape[1], device=x.device) if in_order else context.tokens.pos
            return sines(pos + offset, x.shape[-1]).to(x.dtype)
        # rows that count 0, 1, 2… share one slice; its gradient is a sum, not a scatter
        return (
            self.positions.weight[offset : offset + x.shape[1]]
            if in_order
            else self.positions(context.tokens.pos + offset)
        )


def table(rows: int, width: int) -> nn.Embedding:
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


def counts_up(context: Context) -> bool:
    """Whether every row's positions count 0, 1, 2…"""
    return isinstance(context.layout, OneDocument | Padded)


class Stack(nn.Module):
    """Inputs, blocks in order, then a last norm where the config has one. Embedding [B, T, E] -> [B, T, D].

    `checkpoints_blocks`: in training a block keeps its input alone and is computed again in the backward pass.
    `layer_drop`: share of layers that a pass in training leaves out, each by a draw of its own from torch's generator
    on the CPU (Fan et al. 2019, arXiv 1909.11556); nothing is scaled.
    """

    def __init__(self, config: StackConfig):
        super().__init__()
        self.config, self.checkpoints_blocks, self.layer_drop = config, False, 0.0
        self.inputs = InputLayer(config)
        layer_of_block = {block: layer for layer, block in reversed(list(enumerate(config.block_of_layer)))}
        self.layers = nn.ModuleList(Block(config, config.layers[layer_of_block[b]]) for b in range(config.n_blocks))
        biases = (make_bias(layer.position, layer.mixer.n_heads, config.causal) for layer in config.layers[:1])
        self.bias = next(biases, None)
        tables = (layer.position for layer in config.layers if isinstance(layer.position, Disentangled))
        self.distances = next((DistanceTable(one, config.width, config.norm) for one in tables), None)
        self.conv = Convolution(config.conv, config.width, config.norm) if config.conv is not None else None
        self.norm = make_norm(config.norm, config.width) if config.has_final_norm else None

    def blocks(self) -> list[Block]:
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def in_order(self) -> list[Block]:
        """A block for each layer; shared ones more than once."""
        return [block for n in self.config.block_of_layer if isinstance(block := self.layers[n], Block)]

    def begin(self, embedded: Tensor, context: Context) -> Tensor:
        """What the first block reads, [B, T, D]; fills in what of `context` every block reads."""
        context.bias = None if self.bias is None else Once(self.bias)
        context.distances = None if self.distances is None else self.distances()
        return self.inputs(embedded, context)

    def forward(self, embedded: Tensor, context: Context) -> Tensor:
        inputs = x = self.begin(embedded, context)
        run = (
            recomputed if self.checkpoints_blocks and self.training and torch.is_grad_enabled() else nn.Module.__call__
        )
        for index, block in enumerate(self.config.block_of_layer):
            if not (self.layer_drop and self.training and float(torch.rand(())) < self.layer_drop):
                x = run(self.layers[block], x, context, index)
            if index == 0 and self.conv is not None:
                x = self.conv(inputs, x, context.tokens.doc)
        return x if self.norm is None else self.norm(x)


def recomputed(block: nn.Module, x: Tensor, context: Context, index: int) -> Tensor:
    """What a block gives; its activations are not kept but computed again, dropout and all, when the gradient comes.
    Source: Chen et al. 2016 (arXiv 1604.06174), §4.1."""
    assert isinstance(block, Block)
    draws = any(getattr(part, "dropout", 0.0) for part in block.modules())
    return checkpoint(
        block, x, context, index,
        use_reentrant=False, preserve_rng_state=draws, context_fn=lambda: (nullcontext(), noting_nothing(block)),
    )  # fmt: skip


@contextmanager
def noting_nothing(block: Block) -> Iterator[None]:
    """What experts note of their routing stays that of the first pass: the second's would keep its activations."""
    experts = block.ffn if isinstance(block.ffn, Experts) else None
    routed = None if experts is None else experts.routed
    try:
        yield
    finally:
        if experts is not None:
            experts.routed = routed


def angles_for(tables: dict[object, Angles], tokens: Tokens, in_order: bool) -> dict[object, Angles]:
    """Rotary (cos, sin) of a batch by layer position, each [B|1, T, 1, R/2]. `in_order`: every row counts 0, 1, 2…"""
    angles: dict[object, Angles] = {}
    for position, (cos, sin) in tables.items():
        if in_order:
            n_tokens = tokens.ids.shape[1]
            angles[position] = (cos[None, :n_tokens, None], sin[None, :n_tokens, None])
        else:
            angles[position] = (cos[tokens.pos][:, :, None], sin[tokens.pos][:, :, None])
    return angles
