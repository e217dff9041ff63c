"""The gated feed-forward's own gradient equals autograd's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fledge.nn.config import Dense
from fledge.nn.feedforward import FeedForward, GatedSilu


def test_the_gated_silu_equals_autograd_forward_and_gradient():
    inner = torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(1), requires_grad=True)
    grad = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2))
    got = GatedSilu.apply(*inner.chunk(2, -1))
    gate, up = inner.chunk(2, -1)
    expected = F.silu(gate) * up
    assert torch.equal(got, expected)
    (mine,), (theirs,) = (torch.autograd.grad(y, inner, grad) for y in (got, expected))
    assert (mine - theirs).abs().max() < 1e-6
    assert (mine - theirs.roll(1, -1)).abs().max() > 1e-3  # the control


def test_training_and_inference_give_the_same_feed_forward():
    torch.manual_seed(1)
    ffn = FeedForward(8, Dense(12, "silu", gated=True))
    for parameter in ffn.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = ffn(x)
    assert torch.equal(ffn(x), expected)
