"""Config of `fledge show`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.model.cost import number_of


@dataclass(frozen=True)
class ShowConfig:
    """What a model would be, from its config alone: nothing is allocated."""

    path: str = ""
    """A model folder, a preset's name, or a YAML file with a `model:` group (of its mixture it tells what the run reads
    of each source); or give model.width=… and so on."""
    model: ShapeConfig = field(default_factory=ShapeConfig)
    """A new model's shape (over the file's)."""
    cache_bits: Literal[8, 16, 32] = 16
    """Bits of a cached key or value."""
    rows: int = 0
    """Rows of a training step that are computed at once (micro_rows), for its memory; 0: not counted."""
    row_tokens: int = 0
    """Tokens of such a row; 0: the model's context."""

    tokens: float | str = 0.0
    """Tokens to train on (300B, 1.4T, 2e9), for the time, energy and price of the run; 0: not counted."""
    device: Literal["v100", "a100", "h100", "h200", "rtx4090", "l4", "cpu"] = "a100"
    """What computes them: published 16-bit peak and board power (SXM boards of v100 to h200); cpu: this machine's, its
    peak measured in float32."""
    devices: int = 1
    """How many of them."""
    utilisation: float = 0.4
    """Share of the peak that they reach, recomputed FLOPs counted too. Published runs: 0.3 to 0.55."""
    recompute: bool = False
    """Blocks are computed again in the backward pass, which adds a third of the FLOPs."""
    watts: float = 0.0
    """Power of one device; 0: its board's (cpu: not known, so no energy is told)."""
    energy_overhead: float = 1.0
    """Energy of the data centre for each unit that the devices take (PUE)."""
    price_per_hour: float = 0.0
    """Price of one device for an hour, in any currency; 0: not counted."""

    def __post_init__(self) -> None:
        for name in ("rows", "row_tokens"):
            if not 0 <= getattr(self, name) <= 1 << 20:
                raise ConfigError(f"{name}: expected 0 to {1 << 20}, got {getattr(self, name)}")
        if self.row_tokens and not self.rows:
            raise ConfigError("row_tokens: read with rows only; set that too")
        bounds = {"devices": (1, 1e7), "utilisation": (1e-6, 1), "watts": (0, 1e6), "price_per_hour": (0, 1e9)}
        for name, (low, high) in (bounds | {"energy_overhead": (1, 100)}).items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {getattr(self, name)}")
        if not 0 <= number_of(self.tokens) <= 1e18:
            raise ConfigError(f"tokens: expected 0 to 1e18, got {self.tokens}")
