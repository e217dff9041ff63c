"""Advantages against numbers worked out by hand and against their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.align.advantage import gae, group_advantages, rloo_advantages, whitened


def test_a_group_is_compared_with_its_own_mean_and_deviation():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    found = group_advantages(rewards, 4)
    deviation = math.sqrt(4 * 0.25 / 3)  # unbiased, of 1 0 0 1
    expected = [0.5 / deviation, -0.5 / deviation, -0.5 / deviation, 0.5 / deviation, 0, 0, 0, 0]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=2e-6, rtol=0)


def test_without_the_deviation_a_group_keeps_the_scale_of_its_rewards():
    found = group_advantages(torch.tensor([4.0, 0.0, 0.0, 0.0]), 4, by_deviation=False)
    assert found.tolist() == [3.0, -1.0, -1.0, -1.0]


def test_leave_one_out_compares_with_the_mean_of_the_others():
    rewards = [1.0, 2.0, 6.0, 0.5, 0.5, 2.0]
    expected = []
    for group in (rewards[:3], rewards[3:]):
        for place, reward in enumerate(group):
            others = group[:place] + group[place + 1 :]
            expected.append(reward - sum(others) / len(others))
    assert rloo_advantages(torch.tensor(rewards), 3).tolist() == pytest.approx(expected, abs=1e-12)


def by_the_double_sum(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """Eq. 16 as it is written: every advantage the sum of all errors behind it."""
    n, behind = len(rewards), [*values, 0.0]
    errors = [rewards[t] + gamma * behind[t + 1] - behind[t] for t in range(n)]
    return [sum((gamma * gae_lambda) ** k * errors[t + k] for k in range(n - t)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_the_estimate_of_every_token_is_the_sum_of_the_errors_behind_it(gamma, gae_lambda):
    generator = torch.Generator().manual_seed(1)
    rewards, values = torch.randn(3, 7, generator=generator), torch.randn(3, 7, generator=generator)
    lengths = torch.tensor([7, 1, 4])
    found = gae(rewards, values, lengths, gamma, gae_lambda)
    for b, n in enumerate(lengths.tolist()):
        expected = by_the_double_sum(rewards[b, :n].tolist(), values[b, :n].tolist(), gamma, gae_lambda)
        assert found[b, :n].tolist() == pytest.approx(expected, abs=1e-12)
        assert found[b, n:].tolist() == [0.0] * (7 - n)


def test_at_lambda_1_an_advantage_is_the_return_less_the_value():
    rewards, values = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.5]])
    assert gae(rewards, values, torch.tensor([3]), 1.0, 1.0).tolist() == [[1.5, 1.0, 0.5]]


def test_whitened_advantages_have_mean_0_and_variance_1_where_there_are_tokens():
    advantages = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]], dtype=torch.float64)
    there = torch.tensor([[True, True, False], [True, False, False]])
    found = whitened(advantages, there)
    assert float(found[there].mean()) == pytest.approx(0, abs=1e-9)
    assert float(found[there].var()) == pytest.approx(1, abs=1e-5)
    assert found[~there].tolist() == [0.0, 0.0, 0.0]
