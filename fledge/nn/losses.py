"""Cross-entropy over a vocabulary. N targets, D width, V vocabulary."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

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


HEADROOM = 32.0  # the sum over a chunk's rows of gradient and state stays within float16's 65,504


class FusedCrossEntropy(torch.autograd.Function):
    """Output product and cross-entropy in one, in chunks of rows: the logits of a chunk exist once and become their own
    gradient in place. hidden [N, D], matrix [V, D], bias [V] or None; gives Σ weight · nats. The gradient is p − y,
    scaled. Products are computed in `dtype`; chunks add up in the type of the matrix."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weight: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> Tensor:  # type: ignore[override]
        with exactly_as_written(hidden.device.type):
            return FusedCrossEntropy.chunks(ctx, hidden, matrix, bias, targets, weight, chunk_rows, dtype)

    @staticmethod
    def chunks(
        ctx,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weight: Tensor,
        chunk_rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        for_hidden, for_matrix, for_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_matrix: Tensor | None = None
        grad_bias: Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        product, added = matrix.to(dtype), None if bias is None else bias.to(dtype)
        for start in range(0, hidden.shape[0], chunk_rows):
            rows = slice(start, start + chunk_rows)
            h, y, w = hidden[rows].to(dtype), targets[rows, None], weight[rows, None]
            logits = F.linear(h, product, added).float()
            of_target, most = logits.gather(1, y), logits.amax(1, keepdim=True)
            p = softmax_in_place(logits)
            nats = most - p.amax(1, keepdim=True).log_() - of_target  # the largest p is 1 / Σ exp(logit - most)
            total += torch.where(w > 0, nats * w, 0.0).sum()
            if not (for_hidden or for_matrix or for_bias):
                continue
            p.scatter_add_(1, y, torch.full_like(nats, -1))
            gradient, w = p.to(dtype), w.to(dtype)
            if grad_hidden is not None and grad_hidden.dtype == dtype:
                torch.mm(gradient, product, out=grad_hidden[rows]).mul_(w)
            elif grad_hidden is not None:
                torch.mul(torch.mm(gradient, product), w, out=grad_hidden[rows])
            if for_matrix and matrix.dtype != dtype:
                part = (gradient.t() @ (h * (w / HEADROOM))).to(matrix.dtype)
                grad_matrix = part.mul_(HEADROOM) if grad_matrix is None else grad_matrix.add_(part, alpha=HEADROOM)
            elif for_matrix:
                grad_matrix = add_product(grad_matrix, gradient.t(), h * w)
            if for_bias and bias is not None:
                grad_bias = add_product(grad_bias, p.to(bias.dtype).t(), weight[rows, None].to(bias.dtype))
        if not len(hidden):
            grad_matrix, grad_bias = torch.zeros_like(matrix), None if bias is None else torch.zeros_like(bias)
        ctx.save_for_backward(grad_hidden, grad_matrix, None if grad_bias is None else grad_bias.flatten())
        ctx.scaled = False
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.scaled:
            raise RuntimeError("cross-entropy: expected one backward pass, got a second; compute the loss again")
        ctx.scaled = True  # in place: a copy of the matrix's gradient would cost as much as its computing
        grads = (None if g is None else g.mul_(grad) for g in ctx.saved_tensors)
        return (*grads, None, None, None, None)


def exactly_as_written(device: str) -> AbstractContextManager[object]:
    """Without autocast, whose choice of types was made by hand here."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def has_values(x: Tensor) -> bool:
    """Whether looking at a tensor's values costs nothing: not on a GPU, and not where only shapes are followed (by the
    compiler, or in a subclass of Tensor)."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """total + a b, in place where there is a total."""
    return a @ b if total is None else total.addmm_(a, b)


def softmax_in_place(x: Tensor) -> Tensor:
    """Softmax over the last axis of a tensor that is not needed any more."""
    return torch.softmax(x, -1, out=x) if x.device.type == "cpu" else torch.softmax(x, -1)


def fused_cross_entropy_sum(
    hidden: Tensor, matrix: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None = None, chunk_rows: int = 1024
) -> Tensor:
    """Σ weight · (−log softmax(hidden · matrixᵀ + bias)[target]) in nats, without ever holding all logits.

    hidden [..., D], matrix [V, D], bias [V], targets int64 [...], weight float32 [...]; chunks of `chunk_rows` targets.
    On a CPU, rows of weight 0 are not computed.
    """
    hidden, targets, weight = hidden.flatten(0, -2), targets.flatten(), weight.flatten()
    if not torch.is_grad_enabled():  # a Parameter asks for its gradient even here; computing it would triple the work
        hidden, matrix, bias = hidden.detach(), matrix.detach(), None if bias is None else bias.detach()
    if has_values(weight) and not bool((weight > 0).all()):
        chosen = (weight > 0).nonzero()[:, 0]
        hidden, targets, weight = hidden[chosen], targets[chosen], weight[chosen]
    lower = torch.is_autocast_enabled(hidden.device.type)
    dtype = torch.get_autocast_dtype(hidden.device.type) if lower else hidden.dtype
    return FusedCrossEntropy.apply(hidden, matrix, bias, targets, weight, chunk_rows, dtype)
