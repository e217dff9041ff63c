"""Norms equal torch's, forward and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fledge.nn.config import Norm
from fledge.nn.norm import make_norm


def setting(kind: str, bias: bool = False):
    torch.manual_seed(3)
    norm = make_norm(Norm(kind, 1e-3, bias), 24)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_(1.0, 0.5)
    return norm, torch.randn(3, 5, 24, requires_grad=True), torch.randn(3, 5, 24)


@pytest.mark.parametrize(("kind", "bias"), [("rms", False), ("layer", True), ("layer", False)])
def test_a_norm_equals_torchs_forward_and_gradient(kind, bias):
    norm, x, grad = setting(kind, bias)
    wanted = [x, *norm.parameters()]
    got = norm(x)
    got_gradients = torch.autograd.grad(got, wanted, grad)
    with torch.no_grad():
        assert (norm(x) - got).abs().max() < 1e-6
    expected = (
        F.rms_norm(x, (24,), norm.weight, 1e-3)
        if kind == "rms"
        else F.layer_norm(x, (24,), norm.weight, norm.bias, 1e-3)
    )
    assert (got - expected).abs().max() < 2e-6
    for a, b in zip(got_gradients, torch.autograd.grad(expected, wanted, grad), strict=True):
        assert (a - b).abs().max() < 1e-5


def test_another_epsilon_would_be_noticed():
    norm, x, _ = setting("rms")
    assert (norm(x) - F.rms_norm(x, (24,), norm.weight, 1e-1)).abs().max() > 1e-3
