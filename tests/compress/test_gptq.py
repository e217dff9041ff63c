"""GPTQ and its grids against arithmetic done the long way in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fledge.compress.awq import search
from fledge.compress.gptq import gptq, in_order, inverse_factor, output_loss
from fledge.compress.grid import fit, round_to_nearest
from fledge.errors import NonFiniteError
from fledge.model.quantization import INT8, int4

OUTPUTS, INPUTS = 6, 64


@pytest.fixture(scope="module")
def case() -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and the second moments of inputs that depend on each other and differ in size."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator)
    mixing = torch.randn(INPUTS, INPUTS, generator=generator) * torch.rand(INPUTS, generator=generator) * 3
    x = torch.randn(400, INPUTS, generator=generator) @ mixing
    return weight, x.t() @ x / len(x)


def optimal_brain_quantizer(weight, hessian, damping, scale_of, order):
    """Columns one by one, the inverse Hessian of the rest taken anew each time (paper, eq. 2 and 3)."""
    weight = weight.astype(np.float64).copy()
    damped = hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    codes = np.zeros_like(weight)
    rest = list(order)
    while rest:
        inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
        column = rest[0]
        scale, zero, low, high = scale_of(column)
        codes[:, column] = np.clip(np.rint(weight[:, column] / scale + zero), low, high)
        error = (weight[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        weight[:, rest] -= np.outer(error, inverse[0])
        rest = rest[1:]
    return codes


@pytest.mark.parametrize("scheme", [INT8, int4(32), int4(64)], ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_the_columns_are_those_of_the_long_way(case, scheme, act_order):
    weight, hessian = case
    grid = fit(weight, scheme)
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(INPUTS)
    factor = inverse_factor(hessian.double()[order][:, order], 0.01)
    _, codes = in_order(weight.double(), order, factor, grid, hessian.diagonal(), refit=False)
    group = scheme.group or INPUTS

    def scale_of(column):
        at = column // group
        return grid.scale[:, at].double().numpy(), grid.zero[:, at].double().numpy(), *grid.range

    expected = optimal_brain_quantizer(weight.numpy(), hessian.double().numpy(), 0.01, scale_of, order.tolist())
    assert np.array_equal(codes.numpy(), expected)
    assert not np.array_equal(grid.codes(weight).numpy(), expected)  # the control: rounding to nearest


@pytest.mark.parametrize("scheme", [INT8, int4(32)], ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_outputs_lose_less_than_by_rounding_to_nearest(case, scheme, act_order):
    weight, hessian = case
    losses = []
    for grid, codes in (gptq(weight, hessian, scheme, act_order=act_order), round_to_nearest(weight, scheme)):
        losses.append(output_loss(grid.values(codes) - weight, hessian))
    assert losses[0] < 0.7 * losses[1]


def test_the_loss_is_that_of_the_outputs(case):
    weight, _ = case
    x = torch.randn(50, INPUTS, generator=torch.Generator().manual_seed(1)).double()
    expected = float((x @ weight.double().t()).square().sum())
    assert output_loss(weight, x.t() @ x) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scheme", [INT8, int4(32), int4(64)], ids=str)
def test_a_grid_reaches_over_the_whole_range(case, scheme):
    weight, _ = case
    grid, codes = round_to_nearest(weight, scheme)
    assert codes.min() >= grid.range[0] and codes.max() <= grid.range[1]
    step = grid.scale.repeat_interleave(INPUTS // grid.scale.shape[1], 1)
    # half a step, and as much again where the zero point was rounded too
    assert bool(((grid.values(codes) - weight).abs() <= step * (0.501 if scheme is INT8 else 1.001)).all())
    assert torch.allclose(grid.linear(codes).dequantized(), grid.values(codes))


def test_zeros_stay_zeros_in_every_scheme():
    weight = torch.zeros(3, 64)
    weight[0, 40:] = 5.0  # one whole group of zeros beside one that is all of one sign
    for scheme in (INT8, int4(32)):
        grid, codes = round_to_nearest(weight, scheme)
        assert torch.equal(grid.values(codes)[weight == 0], weight[weight == 0])
        assert torch.allclose(grid.values(codes), weight, rtol=1e-6)


def test_a_grid_by_importance_loses_no_more(case):
    weight, hessian = case
    importance = hessian.diagonal()
    losses = []
    for known in (importance, None):
        grid, codes = round_to_nearest(weight, int4(32), known)
        losses.append(float(((grid.values(codes) - weight).square() * importance).sum()))
    assert losses[0] < losses[1]


def test_inputs_never_seen_and_moments_of_nothing(case):
    weight, hessian = case
    hessian = hessian.clone()
    hessian[5], hessian[:, 5] = 0, 0
    grid, codes = gptq(weight, hessian, int4(32))
    assert torch.isfinite(grid.values(codes)).all()
    with pytest.raises(NonFiniteError):
        gptq(weight, torch.full_like(hessian, float("nan")), int4(32))


def test_awqs_scales_lose_less_where_few_inputs_are_large():
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, INPUTS, generator=generator)
    x = torch.randn(300, INPUTS, generator=generator)
    x[:, ::16] *= 40
    hessian = x.t() @ x / len(x)
    scales = search([weight], hessian, x.abs().mean(0), int4(32), lambda s: s)
    assert scales[0] > 2 * scales[1]

    def loss(scales):
        grid, codes = round_to_nearest(weight * scales, int4(32))
        return output_loss(grid.values(codes) / scales - weight, hessian)

    assert loss(scales) < 0.7 * loss(torch.ones(INPUTS))
    even = torch.eye(INPUTS)
    assert loss_ratio(weight, even) < 1.0001  # where nothing is large nothing is lost by looking


def loss_ratio(weight, hessian):
    scales = search([weight], hessian, torch.ones(INPUTS), int4(32), lambda s: s)
    lost = []
    for one in (scales, torch.ones(INPUTS)):
        grid, codes = round_to_nearest(weight * one, int4(32))
        lost.append(output_loss(grid.values(codes) / one - weight, hessian))
    return lost[0] / lost[1]
