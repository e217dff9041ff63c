"""Device, dtype, rank and seeds as values: asked for once, passed on, never read from a global."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fledge.errors import ConfigError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Device:
    """Where and how precisely to compute: `device` (torch), `dtype` of the weights, `threads` on CPU, this `rank`."""

    device: torch.device
    dtype: torch.dtype
    threads: int
    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True)
class Place:
    """Which process this is of how many: in all, and on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def place_of_process() -> Place:
    """What a launcher such as torchrun says in RANK, WORLD_SIZE and LOCAL_RANK. Raises ConfigError for what is none."""
    found = {name: os.environ.get(name) or "" for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    if found["WORLD_SIZE"] in ("", "1"):
        return Place()
    for name, text in found.items():
        if not text.isdecimal() and not (name == "LOCAL_RANK" and not text):
            raise ConfigError(f"{name}: expected a number, got {text!r:.40}; start fledge with torchrun, or alone")
    place = Place(int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"] or found["RANK"]))
    if not place.rank < place.world_size:
        raise ConfigError(f"RANK: expected less than WORLD_SIZE {place.world_size}, got {place.rank}")
    return place


def pick(name: str = "auto", dtype: str = "auto", threads: int = 0, place: Place | None = None) -> Device:
    """The device of this process; `auto` takes CUDA, then MPS, then CPU; dtype `auto` is float32 on CPU, else bfloat16.

    `threads` 0 leaves torch's choice. `place`: which of many processes this is; without it, being one of many is an
    error. Raises ConfigError, also if the device is not there.
    """
    if place is None:
        refuse_many()
        place = Place()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: expected a CUDA GPU, found none; use device=cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device: expected Apple's MPS, found none; use device=cpu")
    if name not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device: expected auto, cpu, cuda or mps, got {name!r}")
    if dtype == "auto":
        dtype = "bfloat16" if name == "cuda" else "float32"
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    where = torch.device(name, place.local_rank) if name == "cuda" else torch.device(name)
    return Device(where, DTYPES[dtype], torch.get_num_threads(), place.rank, place.world_size)


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next tensor instead of giving them back to the system, which hands
    them out again as fresh zeroed pages: for tensors of 100 MB that can take longer than computing them. Other C
    libraries are left as they are."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(M_TRIM_THRESHOLD, -1)
    mallopt(M_MMAP_MAX, 0)


def refuse_many() -> None:
    """Raises ConfigError where a launcher started this process as one of several: each would do all of the work."""
    world_size = os.environ.get("WORLD_SIZE") or "1"
    if world_size != "1":
        raise ConfigError(
            f"WORLD_SIZE: expected 1 or none (only training, generate and serve have several), got {world_size!r:.40}; "
            "start this without a launcher such as torchrun"
        )


def matmul_peak(device: Device, size: int = 2048, rounds: int = 20) -> float:
    """Measured FLOP/s of a size×size matrix product in the device's dtype: the best of `rounds` after a warm-up."""
    a = torch.randn(size, size, device=device.device, dtype=device.dtype)
    b = torch.randn(size, size, device=device.device, dtype=device.dtype)
    best = 0.0
    for round_index in range(rounds + 1):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        if round_index:
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device without swapping; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    except (OSError, ValueError, IndexError):
        pass  # no Linux, or no limit ("max")
    return min(known, default=None)


def synchronize(device: Device) -> None:
    if device.device.type == "cuda":
        torch.cuda.synchronize(device.device)
    elif device.device.type == "mps":
        torch.mps.synchronize()


def facts(device: Device) -> dict[str, object]:
    """What decides bits: threads, torch version, CPU capability, device and dtype. Kept in run.yaml."""
    return {
        "device": str(device.device),
        "dtype": str(device.dtype).removeprefix("torch."),
        "threads": device.threads,
        "world_size": device.world_size,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
