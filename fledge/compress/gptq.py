"""GPTQ: columns are rounded one after the other, and the columns to come make up for each one's error.

Source: Frantar et al. 2022 (arXiv 2210.17323), algorithm 1. Shapes: O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fledge.compress.grid import Grid, fit, nearest, round_to_nearest
from fledge.errors import NonFiniteError
from fledge.model.quantization import Scheme

LAZY = 128  # columns whose errors reach the far ones together
MOST_TRIES = 6


def gptq(
    weight: Tensor, hessian: Tensor, scheme: Scheme, damping: float = 0.01, act_order: bool = True
) -> tuple[Grid, Tensor]:
    """Grid and whole numbers [O, I] of a matrix whose inputs have the second moments `hessian` [I, I] (any multiple).

    Minimises tr(Δ H Δᵀ), the squared error of the outputs. With `act_order` columns go by falling diagonal and the
    groups' grids are fixed beforehand, so that a folder needs no order of its own; else a group's grid is fitted to
    what the columns before it have left. Whichever of this and rounding to nearest loses less is given: feeding errors
    forward helps nearly always, but no theorem says so.
    Raises NonFiniteError for a Hessian that no damping makes usable.
    """
    weight, hessian = weight.double(), hessian.double()
    importance = hessian.diagonal()
    order = torch.argsort(importance, descending=True, stable=True) if act_order else torch.arange(len(importance))
    factor = inverse_factor(hessian[order][:, order], damping)
    grid = fit(weight, scheme, importance)
    grid, codes = in_order(weight, order, factor, grid, importance, refit=not act_order)
    plain_grid, plain = round_to_nearest(weight, scheme, importance)
    losses = [output_loss(g.values(c) - weight, hessian) for g, c in ((grid, codes), (plain_grid, plain))]
    return (grid, codes) if losses[0] <= losses[1] else (plain_grid, plain)


def in_order(
    weight: Tensor, order: Tensor, factor: Tensor, grid: Grid, importance: Tensor, refit: bool
) -> tuple[Grid, Tensor]:
    """Algorithm 1: whole numbers [O, I], with columns taken in `order`; `factor` is upper triangular, in that order."""
    weight = weight[:, order].clone()
    codes = torch.zeros_like(weight)
    inputs = weight.shape[1]
    group = grid.scheme.group or inputs
    for begin in range(0, inputs, LAZY):
        end = min(begin + LAZY, inputs)
        errors = torch.zeros_like(weight[:, begin:end])
        for i in range(begin, end):
            if refit and grid.scheme.group and i % group == 0:
                grid = with_group(grid, i // group, weight[:, i : i + group], importance[i : i + group])
            at = int(order[i]) // group
            scale, zero = grid.scale[:, at], grid.zero[:, at]
            codes[:, i] = nearest(weight[:, i], scale, zero, grid.range)
            error = (weight[:, i] - (codes[:, i] - zero) * scale) / factor[i, i]
            weight[:, i:end] -= error[:, None] * factor[i, i:end]
            errors[:, i - begin] = error
        weight[:, end:] -= errors @ factor[begin:end, end:]
    return grid, codes[:, torch.argsort(order)].float()


def with_group(grid: Grid, at: int, columns: Tensor, importance: Tensor) -> Grid:
    """The grid with group `at` fitted to `columns` [O, g]."""
    fresh = fit(columns, grid.scheme, importance)
    scale, zero = grid.scale.clone(), grid.zero.clone()
    scale[:, at : at + 1], zero[:, at : at + 1] = fresh.scale, fresh.zero
    return replace(grid, scale=scale, zero=zero)


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """Upper triangular U with Uᵀ U = (H + damping · mean of the diagonal)⁻¹; ten times the damping where that is too
    little for rounding errors."""
    mean = hessian.diagonal().mean()
    for _ in range(MOST_TRIES):
        damped = hessian + damping * mean * torch.eye(len(hessian), dtype=hessian.dtype)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed) and bool(torch.isfinite(factor).all()):
                return factor
        damping *= 10
    raise NonFiniteError(
        "gptq: expected finite inputs to calibrate with, got none that give a Hessian; check the model"
    )


def output_loss(error: Tensor, hessian: Tensor) -> float:
    """tr(E H Eᵀ): the squared error of the outputs that an error of the weights [O, I] makes."""
    error = error.to(hessian.dtype)
    return float(((error @ hessian) * error).sum())
