"""What `fledge prune` takes out of a model. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.config import check_threads
from fledge.errors import ConfigError

PruneMethod = Literal["magnitude", "wanda", "neurons", "heads", "layers"]


@dataclass(frozen=True)
class PruneConfig:
    """A model folder with less in it: weights set to zero, or feed-forward neurons, attention heads or whole layers
    taken out."""

    model: Path
    """Model folder or run folder."""
    out: Path
    """The folder to write; it must not exist or be empty."""
    method: PruneMethod = "magnitude"
    """magnitude: the smallest weights of the linear maps become zero; the shape stays. wanda: of each output the
    weights with the least size times that of what they read on the calibration text. neurons, heads, layers: the
    least important ones are gone, and with them their parameters and their time."""
    share: float = 0.5
    """How much of what the method counts is taken out: of the weights, of each layer's neurons or key/value groups of
    heads, of the layers."""
    scope: Literal["map", "model"] = "map"
    """magnitude: the smallest of each map, or of all maps together."""
    keep: tuple[int, ...] = ()
    """layers: which to keep, from 0, instead of the most important ones."""
    calibration: Path | None = None
    """Text by which importance is measured: a file, a folder, JSON lines, or a folder written by `data build`. None:
    neurons and heads by the size of their weights, layers evenly spaced (the first and every second of the others at a
    share of 0.5, as DistilBERT begins)."""
    rows: int = 32
    """Rows of calibration text."""
    row_tokens: int = 0
    """Tokens of such a row; 0: the model's context, 512 at most."""
    seed: int = 0
    """Decides which rows of the text are taken."""
    evaluate: Path | None = None
    """Text to measure on, as `fledge evaluate` reads it; none: nothing is measured."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share: expected a share between 0 and 1, got {self.share}")
        bounds = {"rows": (1, 1 << 20), "row_tokens": (0, 1 << 20)}
        check_threads(self.threads)
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")
        if self.keep and self.method != "layers":
            raise ConfigError(f"keep: read with method=layers only, got method={self.method}")
        if self.keep and (list(self.keep) != sorted(set(self.keep)) or self.keep[0] < 0):
            raise ConfigError(f"keep: expected layers in rising order, from 0, got {list(self.keep)}")
        if self.scope != "map" and self.method != "magnitude":
            raise ConfigError(f"scope: read with method=magnitude only, got method={self.method}")
        if self.calibration is None and self.method == "wanda":
            raise ConfigError(
                "calibration: expected text for method=wanda, which measures what weights read; give some"
            )
        if self.calibration is not None and self.method == "magnitude":
            raise ConfigError("calibration: expected none for method=magnitude, which reads weights alone")
