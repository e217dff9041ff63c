"""How what a process holds of a parameter relates to the whole, and the whole state of a run on rank 0.

A parameter is cut along the tensor axis (`Cut`), what is left of it along the shard axis (dimension 0, in equal chunks
as fully_shard cuts), and lies in one stage of the pipe. Moments of an optimizer and running means are cut like their
parameters. This is the seam for whoever writes checkpoints: `own` and `whole` take any such tensor by its parameter's
name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from fledge.optim.part import Part
from fledge.train.parallel.config import coordinates
from fledge.train.parallel.exchange import gathered
from fledge.train.parallel.group import Group
from fledge.train.parallel.mesh import Mesh

EVERYWHERE = ("step",)
"""Kinds of state that are one number a parameter, the same on every process."""


@dataclass(frozen=True)
class Cut:
    """A parameter's parts along the tensor axis: process i has `sizes[i]` of dimension `dim`."""

    dim: int
    sizes: tuple[int, ...]


@dataclass
class Pieces(Part):
    """`lengths`: by name, dimension 0 of what fully_shard cuts. `owners`: by name, the place along the shard axis of
    the one process that moves a parameter (stage 1)."""

    mesh: Mesh
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
        if name in self.cuts:
            cut = self.cuts[name]
            whole = whole.split(cut.sizes, cut.dim)[self.mesh.place["tensor"]]
        if name in self.lengths:
            whole = whole.split(self.chunks(name))[self.mesh.place["shard"]]
        return whole

    def chunks(self, name: str) -> list[int]:
        """Rows of each process's chunk; the last ones may have none."""
        n_rows, n_parts = self.lengths[name], self.mesh["shard"].size
        most = -(-n_rows // n_parts)
        return [max(0, min(most, n_rows - index * most)) for index in range(n_parts)]


def split_key(key: str) -> tuple[str, str]:
    """Kind and parameter of a state's key: `exp_avg/NAME`; a parameter itself has no kind."""
    kind, _, name = key.rpartition("/")
    return kind, name


def own_state(saved: Mapping[str, Tensor], pieces: Pieces) -> dict[str, Tensor]:
    """What this process holds of a whole state."""
    return {
        key: tensor if kind in EVERYWHERE else pieces.own(name, tensor)
        for key, tensor in saved.items()
        for kind, name in (split_key(key),)
    }


def whole_state(tensors: Mapping[str, Tensor], pieces: Pieces, group: Group, turn: str) -> dict[str, Tensor]:
    """Every tensor of every process's state as a whole, on the CPU of rank 0; elsewhere nothing. All processes must
    call it, with a `turn` that was not used before."""
    found: dict[str, Tensor] = {}
    if pieces.mesh.place["data"]:
        return found
    senders = speakers(pieces)
    n_sent = 0
    for key in sorted(tensors):
        kind, name = split_key(key)
        whole = tensors[key] if kind in EVERYWHERE else pieces.whole(name, tensors[key])
        if group.rank == 0:
            found[key] = whole.detach().to("cpu", copy=True)
        elif group.rank in senders:
            send(key, whole.detach().cpu().contiguous(), group, f"{turn}/{group.rank}/{n_sent}")
            n_sent += 1
    if group.rank in senders:
        group.store.set(f"{turn}/{group.rank}/{n_sent}", json.dumps(None))
    if group.rank == 0:
        for rank in senders:
            found |= received(rank, group, turn)
    return found


def speakers(pieces: Pieces) -> list[int]:
    """The ranks that hand wholes on to rank 0: the first of those that hold parts of the same, in each stage."""
    sizes, found = pieces.mesh.sizes, []
    for rank in range(1, math.prod(sizes.values())):
        place = coordinates(rank, sizes)
        if place["data"] == 0 and place["tensor"] == 0 and (place["shard"] == 0 or pieces.owners):
            found.append(rank)
    return found


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
