"""Losses of preferences, as functions of what a model gives each answer. P pairs, N judged answers.

A *score* of an answer y to a prompt x is log π(y|x) - log π_ref(y|x), or log π(y|x) without a reference, in nats: the
sum over the answer's tokens, or their mean. Each function gives a loss for each pair, which the caller adds up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(
    chosen_P: Tensor, rejected_P: Tensor, beta: float, label_smoothing: float = 0.0, margin_P: Tensor | float = 0.0
) -> Tensor:
    """-(1 - ε) log σ(z) - ε log σ(-z) with z = β (chosen - rejected) - margin: [P].

    Sources: Rafailov et al. 2023 (arXiv 2305.18290, eq. 7); ε, the share of labels that are wrong: Mitchell 2023
    (conservative DPO, eq. 3); margins: Amini et al. 2024 (arXiv 2402.10571, eq. 8)."""
    z = beta * (chosen_P - rejected_P) - margin_P
    return -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)


def hinge(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """max(0, 1 - β (chosen - rejected)): [P]. Sources: Zhao et al. 2023 (SLiC-HF, arXiv 2305.10425, eq. 1); of
    log-ratios Liu et al. 2023 (RSO, arXiv 2309.06657, eq. 10)."""
    return torch.relu(1 - beta * (chosen_P - rejected_P))


def ipo(chosen_P: Tensor, rejected_P: Tensor, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 β))²: [P], β the paper's τ. Source: Azar et al. 2023 (arXiv 2310.12036, eq. 17); its
    authors take means over tokens."""
    return (chosen_P - rejected_P - 1 / (2 * beta)) ** 2


def simpo(chosen_P: Tensor, rejected_P: Tensor, beta: float, gamma: Tensor | float) -> Tensor:
    """-log σ(β (chosen - rejected) - γ) of mean log-probabilities: [P]. Source: Meng et al. 2024 (arXiv 2405.14734,
    eq. 6)."""
    return dpo(chosen_P, rejected_P, beta, 0.0, gamma)


def orpo(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """-log σ(log of the ratio of odds) of mean log-probabilities, with odds p / (1 - p): [P]. Source: Hong et al. 2024
    (arXiv 2403.07691, eq. 4 and 7); the loss adds it λ times to the nats of the chosen answers (eq. 6)."""
    return -F.logsigmoid(log_odds(chosen_P) - log_odds(rejected_P))


def log_odds(log_probability: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p; p = 1, which a long certain answer rounds to, counts as the next number below."""
    below = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    return below - torch.log(-torch.expm1(below))


def kto(
    score_N: Tensor, good_N: Tensor, divergence: Tensor | float, beta: float, good_weight: float, bad_weight: float
) -> Tensor:
    """λ_good (1 - σ(β (score - z))) of good answers, λ_bad (1 - σ(β (z - score))) of others: [N], good_N bool.

    `divergence` z is `kto_divergence` and has no gradient. Source: Ethayarajh et al. 2024 (arXiv 2402.01306, eq. 8)."""
    sign = torch.where(good_N, 1.0, -1.0)
    weight = torch.where(good_N, good_weight, bad_weight)
    return weight * (1 - torch.sigmoid(beta * sign * (score_N - divergence)))


def kto_divergence(mismatched_N: Tensor) -> Tensor:
    """max(0, mean score of answers to other prompts): an estimate of KL(π ‖ π_ref), 0-dim. Source: Ethayarajh et al.
    2024, §4.1."""
    return mismatched_N.detach().mean().clamp(min=0)


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor | float = 0.0) -> Tensor:
    """-log σ(chosen - rejected - margin) of rewards: [P]. Sources: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv
    2203.02155, eq. 1); margins: Touvron et al. 2023 (arXiv 2307.09288, eq. 2)."""
    return -F.logsigmoid(chosen_P - rejected_P - margin_P)


def centring(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """(chosen + rejected)²: [P], a penalty that holds the mean of rewards, which differences leave open, near zero.
    Source: Eisenstein et al. 2023 (arXiv 2312.09244, §2)."""
    return (chosen_P + rejected_P) ** 2
