"""Sums and gathers along a line of processes, plain and for autograd. B rows, T tokens, D width, P processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from fledge.parallel.mesh import Line


def summed(x: Tensor, line: Line) -> Tensor:
    """A new tensor: the sum of all processes' `x`."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    if line.size > 1:
        dist.all_reduce(total, group=line.group)
    return total


def gathered(x: Tensor, line: Line, sizes: list[int], dim: int = 0) -> Tensor:
    """All processes' parts of a tensor side by side along `dim`, of which process i has `sizes[i]`."""
    if line.size == 1:
        return x.detach().contiguous()
    most = max(sizes)
    moved = x.detach().movedim(dim, 0).contiguous()
    if moved.shape[0] < most:  # every process sends as much
        moved = torch.cat((moved, moved.new_zeros(most - moved.shape[0], *moved.shape[1:])))
    parts = [torch.empty_like(moved) for _ in sizes]
    dist.all_gather(parts, moved, group=line.group)
    whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
    return whole.movedim(0, dim).contiguous()


class Enter(torch.autograd.Function):
    """x as it is; the gradient is the sum of all processes', each of which made another part of what x goes into.
    Source: Shoeybi et al. 2019 (arXiv 1909.08053), §3, f."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line) -> Tensor:  # type: ignore[override]
        ctx.line = line
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return summed(grad, ctx.line), None


class Leave(torch.autograd.Function):
    """The sum of all processes' x; the gradient as it is (ibid., g)."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line) -> Tensor:  # type: ignore[override]
        return summed(x, line)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


def part_of(n: int, line: Line) -> int:
    """Tokens of each process's part of a row of `n`, the last filled up."""
    return -(-n // line.size)


def cut(x: Tensor, line: Line) -> Tensor:
    """This process's tokens of x [B, T, D]: [B, T / P, D], filled up with zeros."""
    size = part_of(x.shape[1], line)
    part = x[:, line.index * size : (line.index + 1) * size]
    return F.pad(part, (0, 0, 0, size - part.shape[1])).contiguous()


def joined_tokens(x: Tensor, line: Line, n_tokens: int) -> Tensor:
    """The whole [B, T, D] of all processes' parts [B, T / P, D]."""
    return gathered(x, line, [x.shape[1]] * line.size, 1)[:, :n_tokens]


def summed_part(x: Tensor, line: Line) -> Tensor:
    """This process's tokens of the sum of all processes' x [B, T, D]: [B, T / P, D]."""
    size = part_of(x.shape[1], line)
    x = F.pad(x.detach(), (0, 0, 0, size * line.size - x.shape[1]))
    parts = torch.cat(x.chunk(line.size, 1))  # [P B, T / P, D]
    part = torch.empty_like(parts[: x.shape[0]])
    dist.reduce_scatter_tensor(part, parts, group=line.group)
    return part


class CutTokens(torch.autograd.Function):
    """What all processes have alike, [B, T, D], to its parts: [B, T / P, D]."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line) -> Tensor:  # type: ignore[override]
        ctx.line, ctx.n_tokens = line, x.shape[1]
        return cut(x, line)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return joined_tokens(grad, ctx.line, ctx.n_tokens), None


class JoinTokens(torch.autograd.Function):
    """Parts [B, T / P, D] to the whole, which all processes then use alike: [B, T, D]."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line, n_tokens: int) -> Tensor:  # type: ignore[override]
        ctx.line = line
        return joined_tokens(x, line, n_tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return cut(grad, ctx.line), None, None


class EnterTokens(torch.autograd.Function):
    """Parts [B, T / P, D] to the whole, of which each process makes another part of what comes: the gradient is this
    process's tokens of the sum. Source: Korthikanti et al. 2022 (arXiv 2205.05198), §4.2, g."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line, n_tokens: int) -> Tensor:  # type: ignore[override]
        ctx.line = line
        return joined_tokens(x, line, n_tokens)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return summed_part(grad, ctx.line), None, None


class LeaveTokens(torch.autograd.Function):
    """This process's tokens of the sum of all processes' x [B, T, D]: [B, T / P, D] (ibid., g bar)."""

    @staticmethod
    def forward(ctx, x: Tensor, line: Line) -> Tensor:  # type: ignore[override]
        ctx.line, ctx.n_tokens = line, x.shape[1]
        return summed_part(x, line)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return joined_tokens(grad, ctx.line, ctx.n_tokens), None
