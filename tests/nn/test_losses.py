"""The fused cross-entropy equals torch's, its gradient is p - y, and masked targets add exactly nothing."""

from __future__ import annotations

import pytest
import torch

from fledge.nn.losses import cross_entropy_sum, fused_cross_entropy_sum


def setting(n: int = 50):
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(2, n // 2, 16, generator=generator, requires_grad=True)
    matrix = torch.randn(31, 16, generator=generator, requires_grad=True)
    targets = torch.randint(0, 31, (2, n // 2), generator=generator)
    weight = (torch.rand(2, n // 2, generator=generator) > 0.3).float()
    return hidden, matrix, targets, weight


@pytest.mark.parametrize("chunk_rows", [7, 50, 1000])
@pytest.mark.parametrize("biased", [False, True])
def test_the_fused_loss_and_gradients_equal_torchs(chunk_rows, biased):
    hidden, matrix, targets, weight = setting()
    weight = weight * 0.7
    bias = torch.randn(31, generator=torch.Generator().manual_seed(5), requires_grad=True) if biased else None
    leaves = (hidden, matrix) if bias is None else (hidden, matrix, bias)
    loss = fused_cross_entropy_sum(hidden, matrix, targets, weight, bias, chunk_rows) / 3
    got = torch.autograd.grad(loss, leaves)
    logits = torch.nn.functional.linear(hidden, matrix, bias)
    rows = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    expected_loss = (rows * weight.flatten()).sum() / 3
    expected = torch.autograd.grad(expected_loss, leaves)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).abs().max() < 1e-5


def test_the_plain_loss_equals_the_fused_one():
    hidden, matrix, targets, weight = setting()
    plain = cross_entropy_sum(hidden @ matrix.t(), targets, weight)
    assert plain.item() == pytest.approx(fused_cross_entropy_sum(hidden, matrix, targets, weight).item(), rel=1e-6)


def test_an_all_masked_batch_has_loss_zero_and_gradient_zero():
    hidden, matrix, targets, weight = setting()
    loss = fused_cross_entropy_sum(hidden, matrix, targets, torch.zeros_like(weight))
    assert loss.item() == 0.0
    gradients = torch.autograd.grad(loss, (hidden, matrix))
    assert all(bool((g == 0).all()) for g in gradients)


def test_a_masked_target_does_not_reach_the_loss():
    hidden, matrix, targets, weight = setting()
    other = torch.where(weight > 0, targets, (targets + 1) % 31)
    loss, same, changed = (
        fused_cross_entropy_sum(hidden, matrix, chosen, weight).item()
        for chosen in (targets, other, (targets + 1) % 31)
    )
    assert loss == same
    assert loss != changed


def test_without_gradients_only_the_loss_is_computed(monkeypatch):
    """Validation must not pay for the output matrix's gradient, though a Parameter asks for one."""
    hidden, matrix, targets, weight = setting()
    products = []
    whole = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *args, **more: products.append(1) or whole(*args, **more))
    with torch.no_grad():
        quiet = fused_cross_entropy_sum(hidden, matrix, targets, weight)
    assert not products
    loud = fused_cross_entropy_sum(hidden, matrix, targets, weight)
    assert products and quiet.item() == loud.item()  # the control


def test_a_second_backward_pass_is_refused():
    """The kept gradients are scaled in place: a second pass would scale them twice."""
    hidden, matrix, targets, weight = setting()
    loss = fused_cross_entropy_sum(hidden, matrix, targets, weight)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_extreme_logits_give_finite_losses():
    hidden, matrix, targets, weight = setting()
    loss = fused_cross_entropy_sum(hidden * 1e4, matrix, targets, weight)
    rows = torch.nn.functional.cross_entropy(
        (hidden * 1e4 @ matrix.t()).flatten(0, 1), targets.flatten(), reduction="none"
    )
    assert loss.item() == pytest.approx((rows * weight.flatten()).sum().item(), rel=1e-5)
