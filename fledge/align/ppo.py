"""PPO beside the policy's objective: the rewards of tokens, the loss of values, the weight of the distance."""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.align.rl_config import PpoConfig


def shaped_rewards(rewards: Tensor, log_p: Tensor, reference: Tensor, lengths: Tensor, kl: float) -> Tensor:
    """Rewards of tokens [N, T]: −kl · (log p − log p_ref) of each, and the answer's reward [N] at its last one.

    log_p, reference [N, T]; 0 behind the `lengths` [N]. Source: Ziegler et al. 2019 (arXiv 1909.08593) eq. 2, spread
    over tokens as Ouyang et al. 2022 (arXiv 2203.02155).
    """
    there = torch.arange(log_p.shape[1]) < lengths[:, None]
    shaped = torch.where(there, -kl * (log_p.double() - reference.double()), 0.0)
    shaped[torch.arange(len(rewards)), lengths - 1] += rewards.double()
    return shaped


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """½ max((V − R)², (clip(V, V_old ± clip) − R)²) a token; `clip` 0: ½ (V − R)². Source: the PPO of OpenAI's
    baselines, as Huang et al. 2022 ("The 37 implementation details", 9) describe it."""
    squared = (values - returns).square()
    if clip:
        near = old + (values - old).clamp(-clip, clip)
        squared = torch.maximum(squared, (near - returns).square())
    return 0.5 * squared


def next_kl(kl: float, distance: float, n_answers: int, config: PpoConfig) -> float:
    """The weight after a rollout of `n_answers` whose mean distance from the reference was `distance` nats an answer.
    Source: Ziegler et al. 2019 §2.2: the error of proportion is bounded to 0.2."""
    if not config.kl_target:
        return kl
    error = min(max(distance / config.kl_target - 1, -0.2), 0.2)
    return kl * (1 + error * n_answers / config.kl_horizon)
