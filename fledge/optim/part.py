"""Which part of a model's parameters a process moves, where several share a model."""

from __future__ import annotations

import torch
from torch import Tensor

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes, one number a dimension."""


class Part:
    """What one process of a run moves; this one is of a process alone: every parameter, wholly."""

    def moves(self, name: str) -> bool:
        """Whether this process moves the parameter (its part of it)."""
        return True

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """The whole of a tensor of which each process holds what it holds of parameter `name`."""
        return tensor

    def own(self, name: str, whole: Tensor) -> Tensor:
        """What this process holds of it."""
        return whole

    def box(self, key: str, shape: tuple[int, ...]) -> Box:
        """Where what this process holds of a tensor of `shape` lies in it: of a parameter by its name, or of what is
        remembered of one (`exp_avg/NAME`)."""
        return (0,) * len(shape), shape


ALL = Part()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is sharded over several (a DTensor); any other tensor as it is."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        return tensor.to_local()
