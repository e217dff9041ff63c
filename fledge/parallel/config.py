"""How the processes that a launcher starts share a run, or a model that answers. Imports no torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from fledge.errors import ConfigError

AXES = ("pipe", "data", "shard", "tensor")
"""Outermost first: neighbouring ranks share a tensor, which talks most."""
MOST_PROCESSES = 1 << 20


@dataclass(frozen=True)
class ParallelConfig:
    """A mesh of processes: data x shard x tensor x pipe, as many as the launcher starts (see docs/parallel.md)."""

    at: ClassVar[str] = "train.parallel"
    remedy: ClassVar[str] = "the same command continues from the last checkpoint"

    data: int = 0
    """Groups of processes that hold the model once more and read rows of their own; 0: as many as there are
    processes for."""
    shard: int = 1
    """Processes that read rows of their own and share weights, gradients and optimizer state (ZeRO, FSDP)."""
    shard_stage: Literal[1, 2, 3] = 3
    """What they share: 1 the optimizer's state; 2 gradients too, and weights between steps; 3 weights at all times but
    for the block at work."""
    tensor: int = 1
    """Processes that share every matrix and head and read the same rows (Megatron)."""
    sequence: bool = False
    """Between matrices, tensor processes hold a part of each row's tokens instead of all of them."""
    pipe: int = 1
    """Processes that hold some of the blocks each, one after the other."""
    schedule: Literal["1f1b", "gpipe"] = "1f1b"
    """Order of a pipe's micro-batches: one forward, one backward; or all forward, then all backward."""
    timeout_seconds: int = 1800
    """How long a process waits for another before the run ends with the name of the one that is missing."""

    def __post_init__(self) -> None:
        check_ranges(self, {"data": 0, "shard": 1, "tensor": 1, "pipe": 1, "timeout_seconds": 1})
        if self.sequence and self.tensor == 1:
            raise ConfigError("train.parallel.sequence: expected tensor processes to share rows, got tensor=1")

    def sizes(self, n_processes: int) -> dict[str, int]:
        """Processes along each axis. Raises ConfigError unless their product is `n_processes`."""
        others = self.shard * self.tensor * self.pipe
        data = self.data or max(1, n_processes // others)
        asked = f"data {self.data or 'any'} x shard {self.shard} x tensor {self.tensor} x pipe {self.pipe}"
        check_number(self.at, asked, data * others, n_processes)
        return {"pipe": self.pipe, "data": data, "shard": self.shard, "tensor": self.tensor}

    def readers(self, n_processes: int) -> int:
        """How many parts the rows of a global batch fall into."""
        sizes = self.sizes(n_processes)
        return sizes["data"] * sizes["shard"]


@dataclass(frozen=True)
class SplitConfig:
    """Processes that share one model that answers: tensor x pipe, as many as the launcher starts."""

    at: ClassVar[str] = "parallel"
    remedy: ClassVar[str] = "start all processes again"

    tensor: int = 1
    """Processes that share every matrix, and the cache by heads."""
    pipe: int = 1
    """Processes that hold some of the blocks each, with their cache, one after the other."""
    timeout_seconds: int = 300
    """How long a process waits for another before all end with the name of the one that is missing."""

    def __post_init__(self) -> None:
        check_ranges(self, {"tensor": 1, "pipe": 1, "timeout_seconds": 1})

    def sizes(self, n_processes: int) -> dict[str, int]:
        """Processes along each axis. Raises ConfigError unless their product is `n_processes`."""
        asked = f"tensor {self.tensor} x pipe {self.pipe}"
        check_number(self.at, asked, self.tensor * self.pipe, n_processes)
        return {"pipe": self.pipe, "data": 1, "shard": 1, "tensor": self.tensor}

    @property
    def several(self) -> bool:
        return self.tensor * self.pipe > 1

    def launched(self) -> int:
        """How many processes the launcher has started. Raises ConfigError unless they are as many as this asks for."""
        text = os.environ.get("WORLD_SIZE") or "1"
        if not text.isdecimal():
            raise ConfigError(f"WORLD_SIZE: expected a number, got {text!r:.40}; start fledge with torchrun, or alone")
        self.sizes(int(text))
        return int(text)


def check_ranges(config: ParallelConfig | SplitConfig, least: dict[str, int]) -> None:
    for name, lowest in least.items():
        value = getattr(config, name)
        if not lowest <= value <= MOST_PROCESSES:
            raise ConfigError(f"{config.at}.{name}: expected {lowest} to {MOST_PROCESSES:,}, got {value}")


def check_number(at: str, asked: str, wanted: int, n_processes: int) -> None:
    if wanted != n_processes:
        raise ConfigError(
            f"{at}: expected {asked} processes, got {n_processes} (WORLD_SIZE); start {wanted} with torchrun "
            f"--nproc-per-node, or let the axes of {at} multiply to {n_processes}"
        )


def coordinates(rank: int, sizes: dict[str, int]) -> dict[str, int]:
    """A rank's place along each axis."""
    place = {}
    for axis in reversed(AXES):
        rank, place[axis] = divmod(rank, sizes[axis])
    return place


def ranks_along(axes: tuple[str, ...], sizes: dict[str, int]) -> list[list[int]]:
    """Every set of ranks that differ in `axes` alone, in rank order."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for rank in range(math.prod(sizes.values())):
        place = coordinates(rank, sizes)
        sets.setdefault(tuple(place[axis] for axis in AXES if axis not in axes), []).append(rank)
    return list(sets.values())
