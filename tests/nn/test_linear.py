"""Joined maps lie together in memory, compute what separate maps compute, and get the same gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from fledge.nn.linear import Joined, adjacent, pack

SIZES = {"q": 6, "k": 4, "v": 4}


def joined(bias: bool = True, unbiased: tuple[str, ...] = ()) -> Joined:
    maps = Joined(5, SIZES, bias, unbiased)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in maps.parameters():
            parameter.normal_(generator=generator)
    return maps


def weights(maps: Joined) -> list[torch.Tensor]:
    return [one.weight for one in maps.maps()]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("bias, unbiased", [(False, ()), (True, ()), (True, ("k",))])
def test_one_product_equals_separate_ones_with_gradients(bias, unbiased, apart):
    maps = joined(bias, unbiased)
    if apart:  # as a loader or an optimizer that replaces tensors leaves them
        for one in maps.maps():
            one.weight.data = one.weight.data.clone()
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2), requires_grad=True)
    leaves = (x, *maps.parameters())
    got = maps(x)
    expected = torch.cat([F.linear(x, one.weight, one.bias) for one in maps.maps()], -1)
    toward = torch.randn(got.shape, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(got, expected, atol=1e-6)
    pairs = zip(torch.autograd.grad(got, leaves, toward), torch.autograd.grad(expected, leaves, toward), strict=True)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    with torch.no_grad():
        assert torch.allclose(maps(x), expected, atol=1e-6)


def test_weights_lie_together_from_the_start_and_after_a_loader_moved_them():
    maps = joined()
    assert adjacent(weights(maps))
    before = [w.detach().clone() for w in weights(maps)]
    for one in maps.maps():
        one.weight = torch.nn.Parameter(one.weight.detach().clone())
    assert not adjacent(weights(maps))
    same = weights(maps)
    maps(torch.zeros(1, 5))
    assert adjacent(weights(maps))
    assert all(a is b for a, b in zip(same, weights(maps), strict=True)), "an optimizer still holds the parameters"
    assert all(torch.equal(a, b) for a, b in zip(before, weights(maps), strict=True))


def test_weights_lie_together_after_a_move_to_another_type():
    maps = joined()
    before = [w.detach().double() for w in weights(maps)]
    maps = maps.double()
    assert adjacent(weights(maps))
    assert all(torch.equal(a, b) for a, b in zip(before, weights(maps), strict=True))


def test_a_step_on_one_map_leaves_the_others_alone():
    maps = joined()
    others = [w.detach().clone() for w in weights(maps)[1:]]
    with torch.no_grad():
        weights(maps)[0].add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(others, weights(maps)[1:], strict=True))


def test_a_frozen_map_gets_no_gradient():
    maps = joined()
    weights(maps)[1].requires_grad_(False)
    maps(torch.ones(2, 5)).sum().backward()
    grads = [w.grad is not None for w in weights(maps)]
    assert grads == [True, False, True]


def test_under_autocast_the_maps_compute_in_the_lower_precision_with_gradients():
    maps = joined()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(4), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = maps(x)
    got.float().sum().backward()
    assert got.dtype == torch.bfloat16 and torch.allclose(got.float(), maps(x), atol=0.1)
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in (x, *maps.parameters()))


def test_a_copy_shares_nothing():
    maps = joined()
    copied = copy.deepcopy(maps)
    with torch.no_grad():
        weights(copied)[0].zero_()
    assert weights(maps)[0].any()
    x = torch.randn(4, 5)
    assert torch.allclose(pack(maps)(x), maps(x), atol=1e-6)
