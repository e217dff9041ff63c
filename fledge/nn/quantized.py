"""Linear maps whose weights are whole numbers of 8 or 4 bits; activations become int8 row by row.

The product of whole numbers is exact, so that a row's result depends neither on its neighbours nor on the order of
summing. Shapes: N rows, I inputs, O outputs, G groups of g inputs. Weights have no gradient; the input has one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fledge.errors import ConfigError
from fledge.nn.adapter import Adapter
from fledge.nn.config import INT4_GROUPS

MOST = 127  # of an activation or an 8-bit weight; files of other software may hold weights of -128
MAX_INPUTS = (2**31 - 1) // (128 * 128)  # a sum of so many products fits 32 bits
EXACT_INPUTS = 2**24 // (128 * 128)  # and of so many the 24 bits of float32
ROWS_OF_OUTPUTS = 1 << 17  # numbers of an output that stay near the processor while groups are summed


class Int8Linear(nn.Module):
    """y = x Wᵀ + b with W = weight · scale: `weight` int8 [O, I], `scale` float32 [O], one for each output.

    A row x becomes q = x / (max|x| / 127), rounded half to even; y = (Σ q · weight) · (scale of x · scale) + b.
    """

    weight: Tensor
    scale: Tensor
    adapter: Adapter | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None):
        super().__init__()
        outputs, inputs = weight.shape
        check("weight", weight, (outputs, inputs), torch.int8)
        check("scale", scale, (outputs,), torch.float32)
        check_inputs(inputs)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias, self.adapter = frozen(bias), None

    def forward(self, x: Tensor) -> Tensor:
        return adapted(self, x)

    def product(self, x: Tensor) -> Tensor:
        """What the map gives by itself: [..., O]."""
        codes, scale_x = int8_rows(x.reshape(-1, x.shape[-1]))
        y = exact_product(codes, self.weight).float() * (scale_x * self.scale)
        return finished(y, self.bias, x)

    def dequantized(self) -> Tensor:
        """The matrix [O, I] in float32 that the whole numbers stand for."""
        return self.weight.float() * self.scale[:, None]


class Int4Linear(nn.Module):
    """y = x Wᵀ + b with W = (q - zero) · scale by groups of inputs: `packed` uint8 [O, I / 2] holds q in 0..15, the
    even input in the low half of a byte; `scale` float32 [O, G], `zero` uint8 [O, G] in 0..15.

    Activations as in `Int8Linear`; groups are summed in float32, in rising order:
    y = scale of x · Σ scale · (Σ qx · q - zero · Σ qx) + b.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor
    unpacked: Tensor | None
    adapter: Adapter | None

    def __init__(self, packed: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None = None):
        super().__init__()
        outputs, inputs = packed.shape[0], 2 * packed.shape[1]
        self.group = inputs // max(1, scale.shape[-1])
        if self.group not in INT4_GROUPS or inputs % self.group:
            raise ConfigError(f"group: expected one of {INT4_GROUPS}, got {self.group} for {inputs} inputs")
        check("packed", packed, (outputs, inputs // 2), torch.uint8)
        check("scale", scale, (outputs, inputs // self.group), torch.float32)
        check("zero", zero, tuple(scale.shape), torch.uint8)
        check_inputs(inputs)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("unpacked", None, persistent=False)
        self.bias, self.adapter = frozen(bias), None

    def forward(self, x: Tensor) -> Tensor:
        return adapted(self, x)

    def product(self, x: Tensor) -> Tensor:
        """What the map gives by itself: [..., O]."""
        codes, scale_x = int8_rows(x.reshape(-1, x.shape[-1]))
        steps = self.steps() if self.unpacked is None else self.unpacked
        n_rows = max(1, ROWS_OF_OUTPUTS // steps.shape[0])
        y = torch.cat([self.summed(rows, steps) for rows in codes.split(n_rows)])
        return finished(scale_x * y, self.bias, x)

    def summed(self, codes: Tensor, steps: Tensor) -> Tensor:
        """Σ over groups, in rising order, of scale · Σ qx · (q - zero): [N, O]. The inner sum is the same whole number
        as Σ qx · q - zero · Σ qx."""
        total = torch.zeros(codes.shape[0], steps.shape[0], device=codes.device)
        pairs = zip(codes.split(self.group, 1), steps.split(self.group, 1), self.scale.unbind(1), strict=True)
        for part, weight, scale in pairs:
            total += exact_product(part, weight).float().mul_(scale)
        return total

    def steps(self) -> Tensor:
        """q - zero, int8 [O, I] in -15..15."""
        q = nibbles(self.packed).view(torch.int8).unflatten(1, (-1, self.group))
        return (q - self.zero.view(torch.int8)[:, :, None]).flatten(1)

    def dequantized(self) -> Tensor:
        """The matrix [O, I] in float32 that the whole numbers stand for."""
        return (self.steps().unflatten(1, (-1, self.group)).float() * self.scale[:, :, None]).flatten(1)


Quantized: TypeAlias = Int8Linear | Int4Linear


def adapted(one: Quantized, x: Tensor) -> Tensor:
    """What a map gives with its adapter: [..., O]."""
    x = x if one.adapter is None else one.adapter.before(x)
    y = StraightThrough.apply(x, one) if x.requires_grad and torch.is_grad_enabled() else one.product(x)
    return y if one.adapter is None else one.adapter(x, y, one.dequantized, one.bias)


class StraightThrough(torch.autograd.Function):
    """A map's own numbers forward, int8 rows and all; backward as if x had not been rounded: grad [..., O] times the
    matrix that its whole numbers stand for (Bengio et al. 2013, arXiv 1308.3432: the straight-through estimator)."""

    @staticmethod
    def forward(ctx, x: Tensor, one: Quantized) -> Tensor:  # type: ignore[override]
        ctx.one = one
        return one.product(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad @ ctx.one.dequantized().to(grad.dtype), None


def shape_of(one: Quantized) -> tuple[int, int]:
    """Outputs and inputs of a map."""
    if isinstance(one, Int4Linear):
        return one.packed.shape[0], 2 * one.packed.shape[1]
    return one.weight.shape[0], one.weight.shape[1]


def int8_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, I] as int8 [N, I] in ±127 and their float32 scales [N, 1]; a row of zeros gives zeros."""
    x = x.float()
    scale = x.abs().amax(1, keepdim=True) / MOST
    codes = (x / torch.where(scale == 0, 1.0, scale)).round().clamp(-MOST, MOST)
    return codes.to(torch.int8), scale


def exact_product(x: Tensor, weight: Tensor) -> Tensor:
    """int8 rows [N, I] by an int8 matrix [O, I] -> int32 [N, O], without any rounding.

    Where torch's own product of int8 is not there, saturates or has one input (it takes such a column for a row), in
    float32: products of numbers within ±128 are within 2^14, so that every partial sum over 1024 inputs is a whole
    number within 2^24, which float32 holds exactly in any order of summing.
    """
    if x.shape[0] and x.shape[1] > 1 and whole_numbers_multiply(x.device.type):
        return torch._int_mm(x, weight.t())
    parts = zip(x.split(EXACT_INPUTS, 1), weight.split(EXACT_INPUTS, 1), strict=True)
    sums = [(a.float() @ b.float().t()).to(torch.int32) for a, b in parts]
    return torch.stack(sums).sum(0, dtype=torch.int32)


@cache
def whole_numbers_multiply(device: str) -> bool:
    """Whether torch's product of int8 is exact here, tried on the numbers that saturate a processor without
    instructions for it. On other devices than a CPU it has needs of its own about shapes, and is not used."""
    if device != "cpu":
        return False
    x = torch.tensor([[127], [-127]], dtype=torch.int8).repeat(1, 96)
    weight = torch.tensor([[127], [-128], [-127]], dtype=torch.int8).repeat(1, 96)
    expected = x.long() @ weight.long().t()
    try:
        return torch.equal(torch._int_mm(x, weight.t()).long(), expected)
    except (AttributeError, RuntimeError):
        return False


def finished(y: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Rows [N, O] with the bias, in the type and leading shape of x."""
    y = y if bias is None else y + bias
    return y.to(x.dtype).view(*x.shape[:-1], y.shape[-1])


def nibbles(packed: Tensor) -> Tensor:
    """Bytes [..., n] as numbers 0..15 [..., 2 n], uint8, the low half of a byte first."""
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def in_bytes(codes: Tensor) -> Tensor:
    """Numbers 0..15 [..., 2 n] as bytes [..., n]."""
    pairs = codes.to(torch.uint8).unflatten(-1, (-1, 2))
    return pairs[..., 0] | pairs[..., 1] << 4


def side_by_side(maps: Sequence[nn.Module]) -> Quantized | None:
    """One map that gives what `maps` of one input give, side by side; None unless they are quantized alike. 4-bit
    weights are unpacked to bytes, which a processor multiplies."""
    first = maps[0]
    if all(isinstance(one, Int8Linear) for one in maps):
        return Int8Linear(rows(maps, "weight"), rows(maps, "scale"), bias_of(maps))
    if isinstance(first, Int4Linear) and all(getattr(one, "group", None) == first.group for one in maps):
        joined = Int4Linear(rows(maps, "packed"), rows(maps, "scale"), rows(maps, "zero"), bias_of(maps))
        joined.unpacked = joined.steps()
        return joined
    return None


def rows(maps: Sequence[nn.Module], name: str) -> Tensor:
    return torch.cat([getattr(one, name) for one in maps]) if len(maps) > 1 else getattr(maps[0], name)


def bias_of(maps: Sequence[nn.Module]) -> Tensor | None:
    """The biases side by side, zeros for a map without one; None if none has one."""
    biases = [one.bias for one in maps]
    if all(bias is None for bias in biases):
        return None
    sizes = [tensor_of(one, "scale").shape[0] for one in maps]
    found = [torch.zeros(size) if bias is None else bias for bias, size in zip(biases, sizes, strict=True)]
    return torch.cat([part.detach().to(tensor_of(maps[0], "scale").device) for part in found])  # type: ignore[operator]


def tensor_of(module: nn.Module, name: str) -> Tensor:
    found = getattr(module, name)
    assert isinstance(found, Tensor)
    return found


def frozen(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)


def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise ConfigError for a part of another shape or type."""
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise ConfigError(f"{name}: expected {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}")


def check_inputs(inputs: int) -> None:
    if inputs > MAX_INPUTS:
        raise ConfigError(f"inputs: expected at most {MAX_INPUTS}, got {inputs}: their sum might not fit 32 bits")
