"""Norms over the last axis. Shapes: x [..., D] -> [..., D]."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.nn.config import Norm


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) · weight + bias. Source: Ba et al. 2016 (arXiv 1607.06450)."""

    def __init__(self, width: int, config: Norm):
        super().__init__()
        self.width, self.eps, self.offset = width, config.eps, config.offset
        self.weight = nn.Parameter(torch.ones(width)) if config.weight else None
        self.bias = nn.Parameter(torch.zeros(width)) if config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), scale_of(self.weight, self.offset), self.bias, self.eps)


class Scale(torch.autograd.Function):
    """x · r · weight with r = 1 / sqrt(mean(x²) + eps) over the last axis; x [N, D], weight [D].

    Written out because torch's own is a chain of ten passes on a CPU, forward and back; with x̂ = x r the gradient is
    r (g w − x̂ · mean(g w x̂)) for x and Σ g x̂ for the weight.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        r = inverse_root_mean_square(x, eps)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        x, weight, r = ctx.saved_tensors
        unit = x * r
        product = grad * unit
        along = (product @ weight)[:, None] / x.shape[-1]
        grad_x = (grad * weight).addcmul_(unit, along, value=-1).mul_(r)
        return grad_x, product.sum(0), None


def inverse_root_mean_square(x: Tensor, eps: float) -> Tensor:
    """[..., D] -> [..., 1]."""
    return x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def scale_of(weight: Tensor | None, offset: float) -> Tensor | None:
    return weight if weight is None or not offset else weight + offset


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight. Source: Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4."""

    def __init__(self, width: int, config: Norm):
        super().__init__()
        self.width, self.eps, self.offset = width, config.eps, config.offset
        self.weight = nn.Parameter(torch.full((width,), 1.0 - config.offset)) if config.weight else None

    def forward(self, x: Tensor) -> Tensor:
        weight = scale_of(self.weight, self.offset)
        if weight is not None and weight.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16):
            return self(x.float()).to(x.dtype)  # under autocast
        if x.dtype != torch.float32:  # the mean of squares needs more than 8 bits
            return F.rms_norm(x, (self.width,), weight, self.eps)
        if weight is None:
            return x * inverse_root_mean_square(x, self.eps)
        if torch.compiler.is_compiling():  # which fuses this by itself, forward and back
            return x * inverse_root_mean_square(x, self.eps) * weight
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return Scale.apply(x.flatten(0, -2), weight, self.eps).view(x.shape)
        return (x * inverse_root_mean_square(x, self.eps)).mul_(weight)


class HeadNorms(nn.Module):
    """x [..., H, C]: each head normalised as LayerNorm or RMSNorm do, by a weight of its own, without bias."""

    def __init__(self, n_heads: int, channels: int, config: Norm):
        super().__init__()
        self.plain = make_norm(replace(config, weight=False, bias=False), channels)
        self.heads = nn.ParameterList(torch.ones(channels) for _ in range(n_heads) if config.weight)

    def forward(self, x: Tensor) -> Tensor:
        unit = self.plain(x) * self.weights() if len(self.heads) else self.plain(x)
        return unit.to(x.dtype)

    def weights(self) -> Tensor:
        """[H, C]."""
        return torch.stack(list(self.heads))


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) · weight + bias, statistics over all tokens of the batch in training and their
    running average otherwise, for comparison with the others. Source: Ioffe & Szegedy 2015 (arXiv 1502.03167).

    The running statistics are parameters without gradient, so that checkpoints carry them.
    """

    MOMENTUM = 0.1

    def __init__(self, width: int, config: Norm):
        super().__init__()
        self.eps = config.eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.running_mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.running_variance = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return F.batch_norm(
            flat,
            self.running_mean,
            self.running_variance,
            self.weight,
            self.bias,
            self.training,
            self.MOMENTUM,
            self.eps,
        ).view(x.shape)


def make_norm(config: Norm, width: int) -> nn.Module:
    """The norm module that `config` names."""
    if config.kind == "rms":
        return RMSNorm(width, config)
    return BatchNorm(width, config) if config.kind == "batch" else LayerNorm(width, config)
