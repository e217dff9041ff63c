"""DeBERTa's relative positions (He et al. 2020, arXiv 2006.03654; buckets: 2021, arXiv 2111.09543): scores add what the
content says of the distance and what the distance says of the content.

B rows, T query tokens, S key tokens, H heads, C head channels, D width, R rows of the distance table.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.nn.bias import Places, ahead_of
from fledge.nn.config import Conv, Disentangled, Heads, Norm
from fledge.nn.feedforward import activate
from fledge.nn.linear import Joined, Linear
from fledge.nn.norm import make_norm


class DistanceTable(nn.Module):
    """A learned vector for each distance, [R, D], normalised where the config says; one for all layers of a stack."""

    def __init__(self, config: Disentangled, width: int, norm: Norm):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(table_rows(config), width))
        self.norm = make_norm(norm, width) if config.norm else None

    def forward(self) -> Tensor:
        return self.weight if self.norm is None else self.norm(self.weight)


def table_rows(config: Disentangled) -> int:
    """Twice the farthest distance, or bucket, that has a row of its own."""
    return 2 * (config.buckets or config.span)


class DistanceMaps(nn.Module):
    """A layer's own maps of the distance table to keys and queries (v1; v2 when it doesn't share the content's)."""

    def __init__(self, config: Disentangled, width: int, heads: Heads):
        super().__init__()
        inner = heads.n_heads * heads.head_channels
        self.k = Linear(width, inner, heads.key_bias) if config.content_to_position else None
        self.q = Linear(width, inner, True) if config.position_to_content else None


class DistanceBias:
    """The two score terms of one layer: q_BTHC, k_BSHC -> [B, H, T, S], scaled as the content's scores are."""

    def __init__(self, config: Disentangled, heads: Heads, scale: float, table: Tensor, maps: Joined | DistanceMaps):
        self.config, self.scale, self.shifts = config, scale, False
        channels = heads.head_channels
        self.keys = self.queries = None
        if config.content_to_position:
            self.keys = mapped(maps.k, table).unflatten(-1, (-1, channels))  # [R, H, C]
        if config.position_to_content:
            self.queries = mapped(maps.q, table).unflatten(-1, (-1, channels))

    def learned(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.keys, self.queries) if t is not None)

    def __call__(self, q: Tensor, k: Tensor, q_at: Places, k_at: Places) -> Tensor:
        row = rows_of(-ahead_of(q, k, q_at, k_at), self.config)  # [T, S]
        shape = (q.shape[0], q.shape[2], *row.shape)
        total = q.new_zeros(())
        if self.keys is not None:
            total = total + torch.einsum("bthc,rhc->bhtr", q, self.keys).gather(-1, row.expand(shape))
        if self.queries is not None:
            back = row.t().expand(*shape[:2], *row.t().shape)
            total = total + torch.einsum("bshc,rhc->bhsr", k, self.queries).gather(-1, back).transpose(-1, -2)
        return total * self.scale


def mapped(module: nn.Module | Tensor | None, table: Tensor) -> Tensor:
    assert isinstance(module, nn.Module)
    return module(table)


def rows_of(back: Tensor, config: Disentangled) -> Tensor:
    """Row of the table for query position - key position: cut at both ends."""
    half = config.buckets or config.span
    if config.buckets:
        back = log_bucket(back, config.buckets, config.span)
    return (back + half).clamp(0, 2 * half - 1)


def log_bucket(back: Tensor, buckets: int, span: int) -> Tensor:
    """Distances up to buckets / 2 as they are, farther ones logarithmic up to `span`; the sign is kept."""
    middle = buckets // 2
    far = back.abs().clamp(min=max(1, middle - 1))
    # float32 and this order of operations: one rounding more moves a bucket's edge
    steps = torch.log(far / middle) / torch.log(torch.tensor((span - 1) / middle)) * (middle - 1)
    return torch.where(far <= middle, back, ((torch.ceil(steps) + middle) * back.sign()).to(back.dtype))


class Convolution(nn.Module):
    """norm(x + activation(convolution of `inputs` inside each document)), after the first block (DeBERTa v2).

    inputs, x [B, T, D]; doc [B, T], -1 is padding, whose states are never read.
    """

    def __init__(self, config: Conv, width: int, norm: Norm):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(width, width // config.groups, config.kernel))
        self.bias = nn.Parameter(torch.empty(width))
        self.norm = make_norm(norm, width)

    def forward(self, inputs: Tensor, x: Tensor, doc: Tensor) -> Tensor:
        kernel, groups = self.config.kernel, self.config.groups
        before = (kernel - 1) // 2
        spread = F.pad(inputs, (0, 0, before, kernel - 1 - before)).unfold(1, kernel, 1)  # [B, T, D, kernel]
        near = F.pad(doc, (before, kernel - 1 - before), value=-1).unfold(1, kernel, 1)
        spread = spread * (near == doc[..., None])[:, :, None]
        by_group = spread.unflatten(2, (groups, -1)).flatten(3)  # [B, T, G, D/G · kernel]
        out = torch.einsum("btgi,goi->btgo", by_group, self.weight.flatten(1).unflatten(0, (groups, -1)))
        return self.norm(x + activate(out.flatten(2) + self.bias, self.config.activation))
