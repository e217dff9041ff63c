"""The processes of a distributed run as a checkpoint needs them: who am I, how many are we, what does everyone say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from fledge.errors import CheckpointError
from fledge.train.slices import Slice


class Ranks(Protocol):
    """`rank` of `size`."""

    rank: int
    size: int

    def exchange(self, value: Any) -> list[Any]:
        """The plain value that each rank gave, in order; nobody goes on before all have. Raises CheckpointError when
        one of them is gone."""


class Alone:
    """One process."""

    rank, size = 0, 1

    def exchange(self, value: Any) -> list[Any]:
        return [value]


class Group:
    """The ranks of a torch.distributed process group on the CPU (gloo); None: the default one. They talk JSON. A rank
    that hangs counts as gone after the group's own timeout."""

    def __init__(self, group: Any = None):
        import torch.distributed as distributed

        self.distributed, self.group = distributed, group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)

    def exchange(self, value: Any) -> list[Any]:
        mine = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        try:
            lengths = self.gathered(torch.tensor([mine.numel()]))
            padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
            padded[: mine.numel()] = mine
            texts = self.gathered(padded)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(
                f"rank {self.rank}: lost the other ranks ({reason:.120}); start the run again"
            ) from None
        return [json.loads(bytes(text[: int(n)].tolist())) for text, n in zip(texts, lengths, strict=True)]

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        every = [torch.empty_like(tensor) for _ in range(self.size)]
        self.distributed.all_gather(every, tensor, group=self.group)
        return every


def local_slices(tensors: Mapping[str, Tensor], rank: int) -> list[Slice]:
    """What this rank writes of tensors by name (parameters, or an optimizer's state): its part of each DTensor (the
    first rank's alone where several hold the same), and at rank 0 whatever is no DTensor. Raises CheckpointError for
    pending sums."""
    from torch.distributed.tensor import DTensor

    slices: list[Slice] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if rank == 0:
                slices.append(Slice(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor.detach()))
            continue
        offsets = own_part(name, tensor)
        if offsets is not None:
            slices.append(Slice(name, tuple(tensor.shape), offsets, tensor.to_local().detach()))
    return slices


def own_part(name: str, tensor: Any) -> tuple[int, ...] | None:
    """Where this rank's part of a DTensor begins; None if it has none, or another rank writes the same."""
    from torch.distributed.tensor._utils import (
        compute_local_shape_and_global_offset,
    )  # what torch's own checkpoints use

    placements, place = tensor.placements, tensor.device_mesh.get_coordinate()
    if any(placement.is_partial() for placement in placements):
        raise CheckpointError(f"{name}: expected a sharded or replicated tensor, got sums that are pending")
    if place is None or any(at and placement.is_replicate() for at, placement in zip(place, placements, strict=True)):
        return None
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, placements)
    assert tuple(sizes) == tuple(tensor.to_local().shape), f"{name}: {sizes}"
    return tuple(offsets) if all(sizes) else None
