"""What a student loses beside its teacher (Hinton et al. 2015, arXiv 1503.02531; Sanh et al. 2019, arXiv 1910.01108).

N places, V vocabulary, D width, K likeliest tokens.
"""

from __future__ import annotations

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


def teacher_nats(student_NV: Tensor, taught: Lesson, weight_N: Tensor, temperature: float) -> Tensor:
    """Σ weight · temperature² · KL(teacher ‖ student), both at the temperature. Of a lesson on some tokens all others
    are one event: a lower bound of the divergence, and equal to it where they are all."""
    log_q = torch.log_softmax(student_NV.float() / temperature, -1)
    if taught.ids is None:
        each = (taught.log_p.exp() * (taught.log_p - log_q)).sum(-1)
    else:
        others = torch.logsumexp(log_q.scatter(-1, taught.ids, -torch.inf), -1)
        rest = torch.log1p(-taught.log_p.exp().sum(-1).clamp(max=1 - 1e-7))
        each = (taught.log_p.exp() * (taught.log_p - log_q.gather(-1, taught.ids))).sum(-1)
        each = each + rest.exp() * (rest - others)
    return (weight_N * each).sum() * temperature**2


def hidden_distance(student_ND: Tensor, teacher_ND: Tensor, weight_N: Tensor) -> Tensor:
    """Σ weight · (1 - cosine) of the states at each place."""
    return (weight_N * (1 - torch.cosine_similarity(student_ND.float(), teacher_ND.float(), dim=-1))).sum()
