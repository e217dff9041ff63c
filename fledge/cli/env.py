"""`fledge env`: what this machine and this installation are, in one page to paste into a report."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import fledge

PACKAGES = (
    "torch",
    "numpy",
    "tokenizers",
    "safetensors",
    "jinja2",
    "pyyaml",
    "tiktoken",
    "starlette",
    "uvicorn",
    "prometheus-client",
    "transformers",
)


@dataclass(frozen=True)
class EnvConfig:
    """What to look at."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """The device to describe; auto takes CUDA, then MPS, then CPU."""
    peak: bool = True
    """Measure the matmul peak (a second or two)."""


def env(config: EnvConfig, json: bool = False) -> dict[str, Any]:
    """Versions, machine, device and, if asked for, the measured matmul peak in FLOP/s."""
    result: dict[str, Any] = {
        "fledge": fledge.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "packages": {name: found for name in PACKAGES if (found := version(name)) is not None},
        **(device_facts(config) if version("torch") else {"device": None}),
    }
    if not json:
        print(page(result))
    return result


def device_facts(config: EnvConfig) -> dict[str, Any]:
    from fledge.device import facts, matmul_peak, pick

    device = pick(config.device)
    found = dict(facts(device))
    if config.peak:
        found["matmul_peak_flops"] = matmul_peak(device)
    return found


def page(result: dict[str, Any]) -> str:
    """The facts as aligned lines for people."""
    rows = []
    for key, value in result.items():
        if key == "packages":
            rows += [(name, found) for name, found in value.items()]
        elif key == "memory_bytes":
            rows.append(("memory", "unknown" if value is None else f"{value / 2**30:.1f} GiB"))
        elif key == "matmul_peak_flops":
            rows.append(("matmul peak", f"{value / 1e9:.1f} GFLOP/s (measured, 2048 x 2048)"))
        elif key != "torch":
            rows.append((key.replace("_", " "), "none" if value is None else str(value)))
    longest = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{longest}}  {value}" for name, value in rows)


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's own name where the system tells it (Linux), else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """Physical memory, or None where the system doesn't say (not POSIX)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
