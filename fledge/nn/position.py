"""Rotary turning and sines. B rows, T tokens, H heads, C head channels, R turned channels."""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.nn.config import Rope
from fledge.nn.rope import frequencies


class Turn(torch.autograd.Function):
    """Rotate channel pairs (c, c + R/2) of x [B, T, H, R] by angles whose cosine and sine are [B|1, T, 1, R/2].

    Written out because the textbook form allocates five times the tensor; the gradient is the rotation back.
    """

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        # the table may carry a factor (YaRN): the gradient of a scaled rotation is the scaled rotation back
        return turn(grad, cos, -sin), None, None


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half, turned = cos.shape[-1], 2 * cos.shape[-1]
    first, second = x[..., :half], x[..., half:turned]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:turned]).addcmul_(first, sin)
    if turned < x.shape[-1]:
        out[..., turned:] = x[..., turned:]
    return out


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x [B, T, H, C], its first R channels turned by `angles` (each [B|1, T, 1, R/2]), in x's dtype."""
    cos, sin = angles
    if torch.compiler.is_compiling():  # which fuses this by itself
        first, second, rest = x.tensor_split((cos.shape[-1], 2 * cos.shape[-1]), -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)
    if torch.is_grad_enabled() and x.requires_grad:
        return Turn.apply(x, cos, sin)
    return turn(x, cos, sin)


def rope_table(config: Rope, channels: int, positions: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cos, sin), each float32 [positions, R/2], for documents of up to `length` tokens.
    Source: Su et al. 2021, eq. 15, with Llama's pairing."""
    per_token, factor = frequencies(config, channels, length)
    # float32 on purpose: bf16 loses the position beyond 256 in this product
    angles = torch.arange(positions, device=device).float()[:, None] * per_token.to(device)
    return angles.cos() * factor, angles.sin() * factor


def sines(pos: Tensor, width: int) -> Tensor:
    """Sinusoidal positions [..., width] of pos [...]: sine in even channels, cosine in odd ones.
    Source: Vaswani et al. 2017, §3.5."""
    exponents = torch.arange(0, width, 2, device=pos.device).float() / width
    angles = pos.float()[..., None] * 10000.0**-exponents
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-2)
