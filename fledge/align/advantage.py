"""Advantages: by how much an answer, or a token of it, was better than expected. N answers, T tokens of the longest."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # nats of nothing: keeps a group of equal rewards at 0


def group_advantages(rewards: Tensor, n_samples: int, by_deviation: bool = True) -> Tensor:
    """Each answer's reward minus its prompt's mean, over the prompt's (unbiased) standard deviation: [N] -> [N]. The
    `n_samples` answers of a prompt stand side by side.

    Source: GRPO, Shao et al. 2024 (arXiv 2402.03300) §4.1.2; without the deviation Dr. GRPO, Liu et al. 2025 (arXiv
    2503.20783).
    """
    groups = rewards.double().unflatten(0, (-1, n_samples))
    centred = groups - groups.mean(1, keepdim=True)
    if by_deviation:
        centred = centred / (groups.std(1, keepdim=True) + EPSILON)
    return centred.flatten()


def rloo_advantages(rewards: Tensor, n_samples: int) -> Tensor:
    """Each answer's reward minus the mean of the prompt's other answers: [N] -> [N].

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740) §2.2.
    """
    groups = rewards.double().unflatten(0, (-1, n_samples))
    others = (groups.sum(1, keepdim=True) - groups) / (n_samples - 1)
    return (groups - others).flatten()


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [N, T] of the first `lengths` [N] tokens of each answer; 0 behind them.

    A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} − V_t; behind the last token the value is 0, whether the answer
    ended or was cut. Source: Schulman et al. 2016 (arXiv 1506.02438) eq. 16.
    """
    rewards, values = rewards.double(), values.double()
    there = torch.arange(rewards.shape[1]) < lengths[:, None]
    values = torch.where(there, values, 0.0)
    advantages, running = torch.zeros_like(rewards), torch.zeros(len(rewards), dtype=torch.float64)
    behind = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * behind - values[:, t]
        running = torch.where(there[:, t], delta + gamma * gae_lambda * running, 0.0)
        advantages[:, t], behind = running, values[:, t]
    return advantages


def whitened(advantages: Tensor, there: Tensor) -> Tensor:
    """Shifted and scaled to mean 0 and variance 1 over the tokens that are `there` (bool, the same shape)."""
    chosen = advantages[there]
    if len(chosen) < 2:
        return torch.zeros_like(advantages)
    scaled = (advantages - chosen.mean()) / (chosen.std() + EPSILON)
    return torch.where(there, scaled, 0.0)
