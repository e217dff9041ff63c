"""Objectives of a policy's tokens. N tokens of answers; everything is of the shape [N], natural logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.align.rl_config import Normalise


def clipped_loss(log_p: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """−min(ρ A, clip(ρ, 1 − low, 1 + high) A), ρ = p / p_old. Source: PPO, Schulman et al. 2017 (arXiv 1707.06347)
    eq. 7; `high` apart from `low` is DAPO's clip-higher (Yu et al. 2025, arXiv 2503.14476) eq. 10."""
    ratio = torch.exp(log_p - old)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def is_clipped(log_p: Tensor, old: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """bool: where the objective above is the constant one, without a gradient."""
    ratio = torch.exp(log_p - old)
    return torch.where(advantage > 0, ratio > 1 + high, (ratio < 1 - low) & (advantage < 0))


def k3(log_p: Tensor, log_q: Tensor) -> Tensor:
    """An unbiased estimate of KL(p ‖ q), never below 0, from a sample of p: q/p − 1 − log q/p. Source: Schulman 2020,
    "Approximating KL divergence"; in the loss GRPO's eq. 4."""
    return torch.expm1(log_q - log_p) - (log_q - log_p)


def token_weights(lengths: list[int], normalise: Normalise) -> list[float]:
    """What each token of each answer counts in the sum: 1, or 1 / length where answers count alike."""
    return [1.0 / max(1, length) if normalise == "sequence" else 1.0 for length in lengths]


def whole_weight(weight: Tensor, normalise: Normalise, max_tokens: int) -> float:
    """What the sum is divided by, from a batch's weights [B, T]: known before any forward pass."""
    if normalise == "constant":
        return float(len(weight) * max_tokens)
    return float(weight.double().sum())
