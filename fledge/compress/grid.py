"""The whole numbers that a matrix is rounded to: scales and zero points, fitted to its weights.

Shapes: O outputs, I inputs, G groups of g inputs; 8 bits have one group for all inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fledge.model.quantization import Scheme
from fledge.nn.quantized import MOST, Int4Linear, Int8Linear, Quantized, in_bytes

HIGHEST = 15  # of a 4-bit number
SHRINKS = tuple(1 - step / 40 for step in range(21))  # how much of a group's range is kept: all of it to half


@dataclass(frozen=True)
class Grid:
    """W = (q - zero) · scale with q whole numbers in low..high; `scale`, `zero` float32 [O, G]."""

    scheme: Scheme
    scale: Tensor
    zero: Tensor

    @property
    def range(self) -> tuple[int, int]:
        return (-MOST, MOST) if self.scheme.bits == 8 else (0, HIGHEST)

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest whole numbers of a matrix [O, I], as float32."""
        grouped = weight.unflatten(1, (self.scale.shape[1], -1))
        return nearest(grouped, self.scale[:, :, None], self.zero[:, :, None], self.range).flatten(1)

    def values(self, codes: Tensor) -> Tensor:
        """What whole numbers [O, I] stand for, float32."""
        grouped = codes.unflatten(1, (self.scale.shape[1], -1))
        return ((grouped - self.zero[:, :, None]) * self.scale[:, :, None]).flatten(1)

    def linear(self, codes: Tensor, bias: Tensor | None = None) -> Quantized:
        """The map that computes with whole numbers [O, I]."""
        scale = self.scale.float().contiguous()
        if self.scheme.bits == 8:
            return Int8Linear(codes.to(torch.int8), scale.squeeze(1), bias)
        return Int4Linear(in_bytes(codes), scale, self.zero.to(torch.uint8), bias)


def nearest(weight: Tensor, scale: Tensor, zero: Tensor, bounds: tuple[int, int]) -> Tensor:
    return (weight / scale + zero).round().clamp(*bounds)


def fit(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
    """The grid of a matrix [O, I]: the whole range of each group (of each output for 8 bits).

    With `importance` [I] (mean squares of the inputs) a 4-bit group keeps the share of its range that loses least: what
    few large weights lose by being cut, the others may gain by finer steps.
    """
    weight = weight.float()
    if scheme.bits == 8:
        scale = weight.abs().amax(1, keepdim=True) / MOST
        return Grid(scheme, ones_for_zeros(scale), torch.zeros_like(scale))
    grouped = weight.unflatten(1, (-1, scheme.group))
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    best = grid_between(scheme, low, high)
    if importance is None:
        return best
    costs = importance.float().unflatten(0, (-1, scheme.group))
    least = loss_of(grouped, best, costs)
    for shrink in SHRINKS[1:]:
        other = grid_between(scheme, low * shrink, high * shrink)
        loss = loss_of(grouped, other, costs)
        better = loss < least
        least = torch.where(better, loss, least)
        best = Grid(scheme, torch.where(better, other.scale, best.scale), torch.where(better, other.zero, best.zero))
    return best


def grid_between(scheme: Scheme, low: Tensor, high: Tensor) -> Grid:
    """The 4-bit grid from `low` to `high` [O, G], which zero lies between."""
    scale = ones_for_zeros((high - low) / HIGHEST)
    return Grid(scheme, scale, (-low / scale).round().clamp(0, HIGHEST))


def ones_for_zeros(scale: Tensor) -> Tensor:
    """Any scale serves where all weights are zero; one that is too small to divide by would not."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)


def loss_of(grouped: Tensor, grid: Grid, costs: Tensor) -> Tensor:
    """Σ cost · (rounded - weight)² of each group: [O, G, g], [G, g] -> [O, G]."""
    rounded = nearest(grouped, grid.scale[:, :, None], grid.zero[:, :, None], grid.range) - grid.zero[:, :, None]
    return ((rounded * grid.scale[:, :, None] - grouped).square() * costs).sum(2)


def round_to_nearest(weight: Tensor, scheme: Scheme, importance: Tensor | None = None) -> tuple[Grid, Tensor]:
    """Grid and whole numbers [O, I] of a matrix, each weight for itself."""
    grid = fit(weight, scheme, importance)
    return grid, grid.codes(weight.float())
