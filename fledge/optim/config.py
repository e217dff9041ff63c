"""What a person sets about optimizers beyond AdamW's constants. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError

Method = Literal["adamw", "muon"]


@dataclass(frozen=True)
class GroupConfig:
    """Parameters whose names match a pattern, trained in a way of their own. The first group that matches counts."""

    pattern: str = "*"
    """Names of parameters, with * for any run of characters (embedding.weight, *.layers.0.*, *.router.weight)."""
    rate: float = 1.0
    """Multiplies the learning rate; 0 leaves the parameters as they are."""
    weight_decay: float | None = None
    """Decay of these parameters, vectors too; unset: as without a group."""
    optimizer: Literal["", "adamw", "muon"] = ""
    """Which optimizer moves them (muon: matrices only); empty: as without a group."""

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ConfigError("train.groups.pattern: expected a pattern of names, got none; * matches all")
        if not 0 <= self.rate <= 1e6:
            raise ConfigError(f"train.groups.rate: expected 0 to 1e6, got {self.rate}")
        if self.weight_decay is not None and not 0 <= self.weight_decay <= 1e6:
            raise ConfigError(f"train.groups.weight_decay: expected 0 to 1e6, got {self.weight_decay}")


@dataclass(frozen=True)
class MuonConfig:
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for the matrices inside blocks."""

    learning_rate: float = 0.0
    """Peak learning rate of its matrices, on the same schedule; 0: train.learning_rate, which fits with scale rms (with
    scale published 0.02 is customary)."""
    momentum: float = 0.95
    """Decay of the mean gradient."""
    nesterov: bool = True
    """Look ahead: mix the mean gradient with the present one."""
    iterations: int = 5
    """Newton-Schulz steps."""
    scale: Literal["rms", "published"] = "rms"
    """Size of an update of R rows and C columns: rms: 0.2 sqrt(max(R, C)), about AdamW's, so that its rate and decay
    hold (Liu et al. 2025, arXiv 2502.16982); published: sqrt(max(1, R / C))."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the Newton-Schulz products; the published code has bfloat16, which is faster on GPUs only."""

    def __post_init__(self) -> None:
        if not 0 <= self.learning_rate <= 1e6:
            raise ConfigError(f"train.muon.learning_rate: expected 0 to 1e6, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"train.muon.momentum: expected a number from 0 to below 1, got {self.momentum}")
        if not 1 <= self.iterations <= 99:
            raise ConfigError(f"train.muon.iterations: expected 1 to 99, got {self.iterations}")
