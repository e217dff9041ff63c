"""What a student loses beside its teacher (Hinton et al. 2015, arXiv 1503.02531; Sanh et al. 2019, arXiv 1910.01108;
Agarwal et al. 2024, arXiv 2306.13649).

N places, V vocabulary, D width, K likeliest tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lesson:
    """A teacher's log-probabilities at a temperature: of all [N, V], or [N, K] of those in `ids`, int64 [N, K]."""

    log_p: Tensor
    ids: Tensor | None = None


def lesson(logits_NV: Tensor, temperature: float, top_k: int = 0) -> Lesson:
    """What a teacher says, float32."""
    log_p = torch.log_softmax(logits_NV.float() / temperature, -1)
    if not top_k or top_k >= log_p.shape[-1] - 1:
        return Lesson(log_p)
    values, ids = log_p.topk(top_k, -1)
    return Lesson(values, ids)


def teacher_nats(student_NV: Tensor, taught: Lesson, weight_N: Tensor, temperature: float, beta: float = 0.0) -> Tensor:
    """Σ weight · temperature² · `divergence`, both at the temperature. Of a lesson on some tokens all others are one
    event: a lower bound of the divergence, and equal to it where they are all."""
    log_p, log_q = taught.log_p, torch.log_softmax(student_NV.float() / temperature, -1)
    if taught.ids is not None:
        others = torch.logsumexp(log_q.scatter(-1, taught.ids, -torch.inf), -1, keepdim=True)
        rest = torch.log1p(-log_p.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
        log_p, log_q = torch.cat((log_p, rest), -1), torch.cat((log_q.gather(-1, taught.ids), others), -1)
    return (weight_N * divergence(log_p, log_q, beta)).sum() * temperature**2


def divergence(log_p_NV: Tensor, log_q_NV: Tensor, beta: float) -> Tensor:
    """From a teacher's p to a student's q, nats [N]. Source: Agarwal et al. 2024, eq. 1: the generalised Jensen-Shannon
    divergence β KL(p ‖ m) + (1 - β) KL(q ‖ m), m = β p + (1 - β) q. At 0 and 1, where that is 0, it is what it grows
    as there: KL(p ‖ q), and KL(q ‖ p), the reverse one, which seeks modes."""
    if beta == 0:
        return relative_entropy(log_p_NV, log_q_NV)
    if beta == 1:
        return relative_entropy(log_q_NV, log_p_NV)
    middle = torch.logaddexp(log_p_NV + math.log(beta), log_q_NV + math.log1p(-beta))
    return beta * relative_entropy(log_p_NV, middle) + (1 - beta) * relative_entropy(log_q_NV, middle)


def relative_entropy(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p ‖ q) [N]."""
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def hidden_distance(student_ND: Tensor, teacher_ND: Tensor, weight_N: Tensor) -> Tensor:
    """Σ weight · (1 - cosine) of the states at each place."""
    return (weight_N * (1 - torch.cosine_similarity(student_ND.float(), teacher_ND.float(), dim=-1))).sum()
