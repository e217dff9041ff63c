"""How what a process holds of a parameter relates to the whole, and the whole model on rank 0.

A parameter is cut along the tensor axis (`Cut`), what is left of it along the shard axis (dimension 0, in equal chunks
as fully_shard cuts), and lies in one stage of the pipe. Moments of an optimizer and running means are cut like their
parameters. This is the seam for whoever reads and writes checkpoints: `box` says where a part lies in the whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from fledge.optim.part import Box, Part
from fledge.parallel.config import coordinates
from fledge.parallel.exchange import gathered
from fledge.parallel.group import Group
from fledge.parallel.mesh import Mesh
from fledge.parallel.parts import inside
from fledge.parallel.tensor import Cut
from fledge.train.slices import Slice

EVERYWHERE = ("step",)
"""Kinds of state that are one number a parameter, the same on every process."""


@dataclass
class Pieces(Part):
    """`shapes`: by name, those of whole parameters. `lengths`: by name, dimension 0 of what fully_shard cuts. `owners`:
    by name, the place along the shard axis of the one process that moves a parameter (stage 1)."""

    mesh: Mesh
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)

    def moves(self, name: str) -> bool:
        return self.owners.get(name, self.mesh.place["shard"]) == self.mesh.place["shard"]

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.lengths:
            tensor = gathered(tensor, self.mesh["shard"], self.chunks(name))
        if name in self.cuts:
            cut = self.cuts[name]
            tensor = gathered(tensor, self.mesh["tensor"], list(cut.sizes), cut.dim)
        return tensor

    def own(self, name: str, whole: Tensor) -> Tensor:
        return inside(whole, self.box(name, tuple(whole.shape)))

    def box(self, key: str, shape: tuple[int, ...]) -> Box:
        kind, name = split_key(key)
        place = self.mesh.place
        offsets, sizes = [0] * len(shape), list(shape)
        if kind not in EVERYWHERE and name in self.cuts:
            offsets, sizes = map(list, self.cuts[name].box(shape, place["tensor"]))
        if kind not in EVERYWHERE and name in self.lengths:
            chunks = self.chunks(name)
            offsets[0] += sum(chunks[: place["shard"]])
            sizes[0] = chunks[place["shard"]]
        return tuple(offsets), tuple(sizes)

    def slices(self, tensors: Mapping[str, Tensor]) -> list[Slice]:
        """What this process holds of parameters or of a state, as slices of the whole."""
        found = []
        for key, tensor in tensors.items():
            kind, name = split_key(key)
            shape = tuple(tensor.shape) if kind in EVERYWHERE else self.shapes[name]
            offsets, sizes = self.box(key, shape)
            assert sizes == tuple(tensor.shape), f"{key}: {sizes} {list(tensor.shape)}"
            found.append(Slice(key, shape, offsets, tensor.detach()))
        return found

    def chunks(self, name: str) -> list[int]:
        """Rows of each process's chunk; the last ones may have none."""
        n_rows, n_parts = self.lengths[name], self.mesh["shard"].size
        most = -(-n_rows // n_parts)
        return [max(0, min(most, n_rows - index * most)) for index in range(n_parts)]


def split_key(key: str) -> tuple[str, str]:
    """Kind and parameter of a state's key: `exp_avg/NAME`; a parameter itself has no kind."""
    kind, _, name = key.rpartition("/")
    return kind, name


def whole_parameters(tensors: Mapping[str, Tensor], pieces: Pieces, group: Group, turn: str) -> dict[str, Tensor]:
    """Every parameter of every process as a whole, on the CPU of rank 0; elsewhere nothing. All processes must call it,
    with a `turn` that was not used before."""
    found: dict[str, Tensor] = {}
    if pieces.mesh.place["data"]:
        return found
    senders = speakers(pieces.mesh)
    n_sent = 0
    for name in sorted(tensors):
        whole = pieces.whole(name, tensors[name])
        if group.rank == 0:
            found[name] = whole.detach().to("cpu", copy=True)
        elif group.rank in senders:
            send(name, whole.detach().cpu().contiguous(), group, f"{turn}/{group.rank}/{n_sent}")
            n_sent += 1
    if group.rank in senders:
        group.store.set(f"{turn}/{group.rank}/{n_sent}", json.dumps(None))
    if group.rank == 0:
        for rank in senders:
            found |= received(rank, group, turn)
    return found


def speakers(mesh: Mesh) -> list[int]:
    """The ranks that hand wholes on to rank 0: the first of each further stage of the pipe."""
    places = {rank: coordinates(rank, mesh.sizes) for rank in range(1, math.prod(mesh.sizes.values()))}
    return [rank for rank, at in places.items() if at["data"] == at["tensor"] == at["shard"] == 0]


def send(key: str, tensor: Tensor, group: Group, at: str) -> None:
    """Announce a tensor in the store, then send it to rank 0."""
    group.store.set(at, json.dumps([key, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]))
    dist.send(tensor, 0)


def received(rank: int, group: Group, turn: str) -> dict[str, Tensor]:
    """What `rank` sends."""
    found: dict[str, Tensor] = {}
    while (told := json.loads(group.store.get(f"{turn}/{rank}/{len(found)}"))) is not None:
        key, shape, dtype = told
        found[key] = torch.empty(shape, dtype=getattr(torch, dtype))
        dist.recv(found[key], rank)
    return found
