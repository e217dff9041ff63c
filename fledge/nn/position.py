"""Rotary position. B rows, T tokens, H heads, C head channels."""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.nn.config import Rope


class Turn(torch.autograd.Function):
    """Rotate channel pairs (c, c + C/2) of x [B, T, H, C] by angles whose cosine and sine are [B|1, T, 1, C/2].

    Written out because the textbook form allocates five times the tensor; the gradient is the rotation back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return turn(grad, cos, -sin), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, T, H, C] turned by `angles`, in x's dtype."""
    cos, sin = angles
    if torch.is_grad_enabled() and x.requires_grad:
        return Turn.apply(x, cos, sin)
    return turn(x, cos, sin)


def rope_table(config: Rope, channels: int, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each float32 [positions, C/2]. Source: Su et al. 2021, eq. 15, with Llama's pairing."""
    exponents = torch.arange(0, channels, 2, dtype=torch.int64, device=device).float() / channels
    frequencies = 1.0 / (config.theta**exponents)
    # float32 on purpose: bf16 loses the position beyond 256 in this product
    angles = torch.arange(positions, device=device).float()[:, None] * frequencies
    return angles.cos(), angles.sin()
