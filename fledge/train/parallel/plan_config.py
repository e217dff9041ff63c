"""Config of `fledge plan`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.parallel.config import ParallelConfig


@dataclass(frozen=True)
class PlanConfig:
    """What a run would take on many processes, before it starts: memory, traffic and share of the peak."""

    path: str = ""
    """A model folder, a preset's name, or a YAML file with a `model:` group; or give model.width=… and so on."""
    model: ShapeConfig = field(default_factory=ShapeConfig)
    """A new model's shape (over the file's)."""
    processes: int = 1
    """How many processes."""
    parallel: ParallelConfig = ParallelConfig()
    """How they share the run, as in train.parallel."""
    rows: int = 8
    """Rows of the global batch."""
    micro_rows: int = 0
    """Rows that a process computes at once; 0: all of its own."""
    row_tokens: int = 0
    """Tokens of a row; 0: the model's context."""
    checkpoint_blocks: bool = False
    """Blocks are computed again in the backward pass."""
    device: Literal["v100", "a100", "h100", "h200", "rtx4090", "l4", "cpu"] = "h100"
    """What computes: a published 16-bit peak; cpu: this machine's, measured in float32."""
    utilisation: float = 0.5
    """Share of the peak that a process reaches alone, without traffic."""
    gigabytes_per_second: float = 50.0
    """What a process can send while it receives as much (50: a 400 Gbit/s link; NVLink of an H100: 450)."""

    def __post_init__(self) -> None:
        most = 1 << 24
        bounds = {"processes": (1, most), "rows": (1, most), "micro_rows": (0, most), "row_tokens": (0, most),
                  "utilisation": (1e-6, 1), "gigabytes_per_second": (1e-6, 1e6)}  # fmt: skip
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {getattr(self, name)}")
        readers = self.parallel.readers(self.processes)
        each = readers * max(1, self.micro_rows)
        if self.rows % each:
            raise ConfigError(f"rows: expected a multiple of {each} (readers x micro_rows), got {self.rows}")
