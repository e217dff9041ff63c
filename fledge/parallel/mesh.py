"""A mesh of processes: where this one stands along each axis, and whom it talks to there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from fledge.parallel.config import AXES, coordinates, ranks_along

BATCH = ("data", "shard")
"""The axes along which processes read different rows."""


@dataclass(frozen=True)
class Line:
    """The processes that differ from this one in some axes alone: `ranks` of the run in order, this one's `index` among
    them, and their process group (None where this is the only one)."""

    ranks: tuple[int, ...]
    index: int
    group: Any = None

    @property
    def size(self) -> int:
        return len(self.ranks)


@dataclass(frozen=True)
class Mesh:
    """`sizes` and this process's `place` by axis; a Line for each axis, for `batch` (data and shard together), and a
    second one along the pipe, for what travels back. Who waits along a line for longer than `timeout_seconds` fails."""

    rank: int
    sizes: dict[str, int]
    place: dict[str, int]
    lines: dict[str, Line]
    timeout_seconds: float

    def __getitem__(self, axis: str) -> Line:
        return self.lines[axis]

    @property
    def counts(self) -> bool:
        """Whether this process is the first that holds its part of the model: of equal copies one must be counted."""
        return self.place["data"] == 0


def make_mesh(rank: int, sizes: dict[str, int], timeout_seconds: float) -> Mesh:
    """The mesh of all processes; every one of them must call this."""
    wanted = {axis: (axis,) for axis in AXES} | {"batch": BATCH, "back": ("pipe",)}
    lines = {name: make_line(rank, axes, sizes, timeout_seconds) for name, axes in wanted.items()}
    return Mesh(rank, sizes, coordinates(rank, sizes), lines, timeout_seconds)


def make_line(rank: int, axes: tuple[str, ...], sizes: dict[str, int], timeout_seconds: float) -> Line:
    mine = Line((rank,), 0)
    for ranks in ranks_along(axes, sizes):
        if len(ranks) == 1:
            continue
        group = new_group(ranks, timeout_seconds)  # all processes make all groups, in the same order
        if rank in ranks:
            mine = Line(tuple(ranks), ranks.index(rank), group)
    return mine


def new_group(ranks: list[int], timeout_seconds: float) -> Any:
    """A process group, with the timeout of the whole one: torch would give it half an hour."""
    return dist.new_group(ranks, timeout=timedelta(seconds=timeout_seconds))
