"""Norms over the last axis. Shapes: x [..., D] -> [..., D]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.nn.config import Norm


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) · weight + bias. Source: Ba et al. 2016 (arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight. Source: Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def make_norm(config: Norm, width: int) -> nn.Module:
    """The norm module that `config` names."""
    if config.kind == "rms":
        return RMSNorm(width, config.eps)
    return LayerNorm(width, config.eps, config.bias)
