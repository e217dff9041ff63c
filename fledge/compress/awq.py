"""AWQ: inputs that are large on average get more of the range, by a scale for each input.

A scale multiplies a column of weights and divides what comes before, so that nothing changes in full precision; the
rounding of that column then weighs less. Source: Lin et al. 2023 (arXiv 2306.00978), eq. 4 and 5. Shapes: O outputs,
I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fledge.compress.gptq import output_loss
from fledge.compress.grid import round_to_nearest
from fledge.model.quantization import Scheme

POWERS = tuple(step / 20 for step in range(20))
SMALLEST = 1e-4

Tie = Callable[[Tensor], Tensor]


def search(weights: Sequence[Tensor], hessian: Tensor, mean_abs: Tensor, scheme: Scheme, tie: Tie) -> Tensor:
    """The scales [I] by which columns of `weights` [O, I] are multiplied: mean_abs ** power for the power that loses
    least of the outputs when rounded; all ones where none is better. `tie` makes those equal that have to be."""
    best = torch.ones_like(mean_abs)
    least = float("inf")
    for power in POWERS:
        scales = tie(normalised(mean_abs.clamp(min=SMALLEST).pow(power)))
        loss = sum(loss_scaled(weight, hessian, scales, scheme) for weight in weights)
        if loss < least:
            best, least = scales, loss
    return best


def loss_scaled(weight: Tensor, hessian: Tensor, scales: Tensor, scheme: Scheme) -> float:
    """The squared error of the outputs when a matrix is rounded with its columns multiplied."""
    grid, codes = round_to_nearest(weight * scales, scheme)
    return output_loss(grid.values(codes) / scales - weight, hessian)


def normalised(scales: Tensor) -> Tensor:
    """Around one, so that neither side leaves the range of its type."""
    return (scales / (scales.max() * scales.min()).sqrt()).clamp(min=SMALLEST)
