"""AdamW equals torch's for 100 steps; schedules have their shape; clipping is global."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fledge.errors import ConfigError
from fledge.optim.adamw import AdamW, AdamWConfig
from fledge.optim.schedule import ScheduleConfig, rate_share


def model_and_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    generator = torch.Generator().manual_seed(1)
    return model, lambda: [torch.randn(p.shape, generator=generator) * 3 for p in model.parameters()]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_hundred_steps_equal_torchs(decay):
    model, gradients = model_and_gradients()
    other = nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    other.load_state_dict(model.state_dict())
    config = AdamWConfig(decay, 0.9, 0.95)
    ours = AdamW(model, config)
    groups = [{"params": [p for p in other.parameters() if p.dim() >= d0 and p.dim() < d1], "weight_decay": w}
              for d0, d1, w in ((2, 9, decay), (0, 2, 0.0))]  # fmt: skip
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), foreach=False, fused=False)
    for step in range(100):
        rate = 1e-2 * (1 - step / 200)
        for p, q, g in zip(model.parameters(), other.parameters(), gradients(), strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        norm = ours.clip(1.0)
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(other.parameters(), 1.0)), rel=1e-5)
        ours.step(rate)
        for group in theirs.param_groups:
            group["lr"] = rate
        theirs.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert (p - q).abs().max() < 1e-6, step


def test_decay_of_vectors_would_be_noticed():
    """The control: the groups matter."""
    model, _ = model_and_gradients()
    before = [p.detach().clone() for p in model.parameters()]
    ours = AdamW(model, AdamWConfig(0.5))
    ours.clip(0.0)  # no gradient anywhere: zeros
    ours.step(1e-2)
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old) == (p.dim() < 2 or not bool(old.any()))


def test_the_state_comes_back_to_equal_steps():
    model, gradients = model_and_gradients()
    ours = AdamW(model, AdamWConfig())
    for p, g in zip(model.parameters(), gradients(), strict=True):
        p.grad = g
    ours.step(1e-2)
    saved, weights = {k: v.clone() for k, v in ours.state().items()}, [p.detach().clone() for p in model.parameters()]
    fresh = gradients()
    results = []
    for _ in range(2):
        again = AdamW(model, AdamWConfig())
        again.load(saved)
        with torch.no_grad():
            for p, w, g in zip(model.parameters(), weights, fresh, strict=True):
                p.copy_(w)
                p.grad = g.clone()
        again.step(1e-2)
        results.append([p.detach().clone() for p in model.parameters()])
    ours_next = results[0]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(ours_next, weights, strict=True))


def test_a_gradient_that_is_not_finite_is_reported_and_left_alone():
    model, gradients = model_and_gradients()
    ours = AdamW(model, AdamWConfig())
    for p, g in zip(model.parameters(), gradients(), strict=True):
        p.grad = g
    model[0].weight.grad[0, 0] = math.inf
    before = model[2].weight.grad.clone()
    assert not math.isfinite(ours.clip(1.0))
    assert torch.equal(model[2].weight.grad, before)


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_a_schedule_rises_then_ends_at_its_floor(name, middle):
    config = ScheduleConfig(name, 110, 10, 0.1)
    shares = [rate_share(step, config) for step in range(111)]
    assert 0 < shares[0] < shares[5] < shares[10] == 1.0
    assert shares[60] == pytest.approx(middle)
    assert shares[110] == pytest.approx(1.0 if name == "constant" else 0.1)
    assert all(a >= b for a, b in zip(shares[10:], shares[11:], strict=False))


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match="warmup_steps"):
        ScheduleConfig("cosine", 10, 10, 0.1)
