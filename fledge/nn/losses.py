"""Cross-entropy over a vocabulary. N targets, D width, V vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Σ weight · (−log p(target)), in nats: logits [..., V], targets int64 [...], weight float32 [...].

    A target of weight 0 adds exactly 0, whatever its logits.
    """
    rows = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    flat = weight.flatten()
    return torch.where(flat > 0, rows * flat, 0.0).sum()


class FusedCrossEntropy(torch.autograd.Function):
    """Output product and cross-entropy in one, in chunks of rows: the logits of a chunk exist once and become their own
    gradient in place. hidden [N, D], matrix [V, D]; gives Σ weight · nats. The gradient is p − y, scaled."""

    @staticmethod
    def forward(ctx, hidden: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, chunk_rows: int) -> Tensor:  # type: ignore[override]
        need_hidden, need_matrix = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_matrix = torch.zeros_like(matrix) if need_matrix else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            h, y, w = hidden[rows], targets[rows], weight[rows]
            logits = (h @ matrix.t()).float()
            shift = logits.logsumexp(-1)
            nats = shift - logits.gather(1, y[:, None]).squeeze(1)
            total += torch.where(w > 0, nats * w, 0.0).sum()
            if not (need_hidden or need_matrix):
                continue
            gradient = logits.sub_(shift[:, None]).exp_()
            gradient.scatter_add_(1, y[:, None], torch.full_like(y, -1, dtype=gradient.dtype)[:, None])
            gradient.mul_(w[:, None])
            gradient = gradient.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, matrix, out=grad_hidden[rows])
            if grad_matrix is not None:
                grad_matrix.addmm_(gradient.t(), h)
        ctx.save_for_backward(grad_hidden, grad_matrix)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:  # type: ignore[override]
        grad_hidden, grad_matrix = ctx.saved_tensors
        scaled = (None if g is None else g.mul(grad) for g in (grad_hidden, grad_matrix))
        return (*scaled, None, None, None)  # type: ignore[return-value]


def fused_cross_entropy_sum(
    hidden: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, chunk_rows: int = 1024
) -> Tensor:
    """Σ weight · (−log softmax(hidden · matrixᵀ)[target]) in nats, without ever holding all logits.

    hidden [..., D], matrix [V, D], targets int64 [...], weight float32 [...]; chunks of `chunk_rows` targets.
    """
    width = hidden.shape[-1]
    if not torch.is_grad_enabled():  # a Parameter asks for its gradient even here; computing it would triple the work
        hidden, matrix = hidden.detach(), matrix.detach()
    return FusedCrossEntropy.apply(
        hidden.reshape(-1, width), matrix, targets.reshape(-1), weight.reshape(-1), chunk_rows
    )
