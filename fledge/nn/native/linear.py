"""Linear maps on the compiled kernels: weights as panels, one call a product. O outputs, I inputs.

matmul.h says how panels lie. The kernels read float32, int8 and int4; each row of a product has the same bits in any
company.
"""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from fledge.nn.native.library import Matrix, built, opened

PANEL = 32
FLOAT32, INT8, INT4 = 1, 2, 3
Parts: TypeAlias = dict[str, tuple[int, bool]]
"""Linears that stand side by side in a packed copy, by name: how many outputs each has and whether a bias. A copy of a
lone linear has one part without a name, one of a tied output none."""


class Threads:
    """The kernels' threads, started once for a number of them."""

    def __init__(self, n_threads: int):
        path = built()
        assert path is not None  # whoever asks holds panels: they were wanted when he was made
        self.kernels = opened(path)
        self.pointer = c.c_void_p(self.kernels.fledge_new(n_threads))


@cache
def threads_of(process: int, n: int) -> Threads:
    return Threads(n)


def threads(n: int) -> Threads:
    """`n` threads of this process: a forked one has none of its parent's."""
    return threads_of(os.getpid(), n)


class PanelRows:
    """Rows of a float32 weight that lies in panels, as a place to write to: `copy_` takes the weight [O, I]."""

    def __init__(self, panels: Tensor, begin: int, size: int):
        self.panels, self.rows, self.shape = panels, torch.arange(begin, begin + size), (size, panels.shape[1])

    def copy_(self, weight: Tensor) -> None:
        self.panels[self.rows // PANEL, :, self.rows % PANEL] = weight.to(self.panels.dtype)


Place: TypeAlias = Tensor | PanelRows


class NativeLinear(nn.Module):
    """y = x Wᵀ + b. The weight is kept as panels alone; `matrix` is what the kernels read of it.

    `parts`: the linears that stand side by side in it (see `Parts`).
    """

    panels: Tensor
    bias: Tensor | None

    def __init__(
        self, kind: int, shape: Sequence[int], parts: Parts | None = None, group: int = 0, **tensors: Tensor | None
    ):
        super().__init__()
        self.kind, self.shape, self.group, self.parts = kind, tuple(shape), group, parts or {}
        for name in ("panels", "scales", "zeros", "sums", "bias"):
            self.register_buffer(name, tensors.get(name), persistent=False)

    @property
    def matrix(self) -> Matrix:
        """Pointers into this module's tensors: they must outlive it."""
        given = (getattr(self, name) for name in ("panels", "scales", "zeros", "sums", "bias"))
        return Matrix(self.kind, *self.shape, self.group, *(None if t is None else t.data_ptr() for t in given))

    def places(self) -> dict[str, Place]:
        """Where the parameters lie that it was made of, by their names: weights [O, I], biases [O]."""
        places: dict[str, Place] = {}
        begin = 0
        for name, (size, has_bias) in self.parts.items():
            prefix = f"{name}." if name else ""
            places[f"{prefix}weight"] = PanelRows(self.panels, begin, size)
            if has_bias:
                assert self.bias is not None
                places[f"{prefix}bias"] = self.bias[begin : begin + size]
            begin += size
        return places

    @property
    def weight(self) -> Tensor:
        """Of float32 panels the weight [O, I], copied together."""
        assert self.kind == FLOAT32
        return self.panels.transpose(1, 2).flatten(0, 1)[: self.shape[0]]

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.shape[1]).contiguous()
        y = torch.empty(rows.shape[0], self.shape[0])
        run = threads(torch.get_num_threads())
        at = rows.data_ptr(), c.byref(self.matrix), rows.shape[0], y.data_ptr()
        if run.kernels.fledge_matmul(run.pointer, *at):
            raise MemoryError(f"a product of {rows.shape[0]} rows: expected memory for them, got none")
        return y.view(*x.shape[:-1], self.shape[0])


def float_linear(weight: Tensor, bias: Tensor | None, parts: Parts | None = None) -> NativeLinear:
    """Of a float32 weight [O, I]."""
    blocks = filled(weight, 0, PANEL).view(-1, PANEL, weight.shape[1])
    return NativeLinear(FLOAT32, weight.shape, parts, panels=blocks.transpose(1, 2).contiguous(), bias=bias)


def int8_linear(weight: Tensor, scale: Tensor, bias: Tensor | None) -> NativeLinear:
    """Of an int8 weight [O, I] and the float32 scale of each output [O]."""
    full = filled(filled(weight, 0, PANEL), 1, 4)
    panels = full.view(full.shape[0] // PANEL, PANEL, -1, 4).transpose(1, 2).contiguous()
    sums = filled(weight.sum(1, dtype=torch.int32), 0, PANEL)
    return NativeLinear(INT8, weight.shape, panels=panels, scales=filled(scale, 0, PANEL), sums=sums, bias=bias)


def int4_linear(weight: Tensor, scale: Tensor, zero: Tensor, bias: Tensor | None) -> NativeLinear:
    """Of a uint8 weight [O, I] with values 0..15, and scale and zero point of each group of inputs [O, I / group]."""
    full, n_groups = filled(weight, 0, PANEL), scale.shape[1]
    eights = full.view(full.shape[0] // 16, 16, -1, 2, 4).permute(0, 2, 3, 1, 4)
    panels = (eights[:, :, 0] | (eights[:, :, 1] << 4)).contiguous()
    both = [filled(t, 0, PANEL).view(-1, 16, n_groups).transpose(1, 2).contiguous() for t in (scale, scale * zero)]
    group = weight.shape[1] // n_groups
    return NativeLinear(INT4, weight.shape, group=group, panels=panels, scales=both[0], zeros=both[1], bias=bias)


def filled(t: Tensor, dim: int, multiple: int) -> Tensor:
    """`t` with zeros up to a multiple of `multiple` along `dim`."""
    missing = -t.shape[dim] % multiple
    if not missing:
        return t.contiguous()
    shape = list(t.shape)
    shape[dim] = missing
    return torch.cat([t, t.new_zeros(shape)], dim)


class PanelEmbedding(nn.Module):
    """Rows of a tied output's panels: ids [...] -> [..., I], so that the matrix is kept once."""

    def __init__(self, output: NativeLinear):
        super().__init__()
        self.output = output

    @property
    def weight(self) -> Tensor:
        """The panels: for those who ask for its type and device."""
        return self.output.panels

    def places(self) -> dict[str, Place]:
        """Where the matrix lies, by its name."""
        return {"weight": PanelRows(self.output.panels, 0, self.output.shape[0])}

    def forward(self, ids: Tensor) -> Tensor:
        return self.output.panels[ids // PANEL, :, ids % PANEL]
