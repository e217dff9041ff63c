"""Config of `fledge show`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.model.config import ShapeConfig


@dataclass(frozen=True)
class ShowConfig:
    """What a model would be, from its config alone: nothing is allocated."""

    path: str = ""
    """A model folder, a preset's name, or a YAML file with a `model:` group; or give model.width=… and so on."""
    model: ShapeConfig = field(default_factory=ShapeConfig)
    """A new model's shape (over the file's)."""
    cache_bits: Literal[8, 16, 32] = 16
    """Bits of a cached key or value."""
