"""What tests read of checkpoints, and of DTensors what a rank writes of them: torch's placements are the oracle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fledge.train.restore import SavedState
from fledge.train.slices import Slice


def read_optimizer(folder: Path) -> dict[str, Tensor]:
    """The whole of the optimizer's state, in how many files ever it lies."""
    with SavedState(folder) as saved:
        return dict(saved)


def local_slices(tensors: Mapping[str, Tensor], rank: int) -> list[Slice]:
    """A rank's part of each DTensor (the first rank's alone where several hold the same), and at rank 0 whatever is no
    DTensor."""
    from torch.distributed.tensor import DTensor

    slices: list[Slice] = []
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            if rank == 0:
                slices.append(Slice(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor.detach()))
            continue
        offsets = own_part(tensor)
        if offsets is not None:
            slices.append(Slice(name, tuple(tensor.shape), offsets, tensor.to_local().detach()))
    return slices


def own_part(tensor: Any) -> tuple[int, ...] | None:
    """Where this rank's part of a DTensor begins; None if it has none, or another rank writes the same."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements, place = tensor.placements, tensor.device_mesh.get_coordinate()
    if any(at and placement.is_replicate() for at, placement in zip(place, placements, strict=True)):
        return None
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, placements)
    assert tuple(sizes) == tuple(tensor.to_local().shape)
    return tuple(offsets) if all(sizes) else None
