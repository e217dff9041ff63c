"""Config of `fledge show`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
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
    rows: int = 0
    """Rows of a training step that are computed at once (micro_rows), for its memory; 0: not counted."""
    row_tokens: int = 0
    """Tokens of such a row; 0: the model's context."""

    def __post_init__(self) -> None:
        for name in ("rows", "row_tokens"):
            if not 0 <= getattr(self, name) <= 1 << 20:
                raise ConfigError(f"{name}: expected 0 to {1 << 20}, got {getattr(self, name)}")
        if self.row_tokens and not self.rows:
            raise ConfigError("row_tokens: read with rows only; set that too")
