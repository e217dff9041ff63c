"""Configs of the `checkpoint` verbs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.errors import ConfigError

MOST_RANKS = 99_999  # what a file's name has room for


@dataclass(frozen=True)
class ShowCheckpointsConfig:
    """Which checkpoints to list."""

    path: Path
    """A run folder, or one checkpoint of it."""


@dataclass(frozen=True)
class VerifyCheckpointsConfig:
    """Which checkpoints to read."""

    path: Path
    """A run folder, or one checkpoint of it."""


@dataclass(frozen=True)
class ReshardConfig:
    """What to write anew. A run goes on from any number of files: this is for other software, or for one file."""

    path: Path
    """A checkpoint, or a run folder: its newest whole one."""
    out: Path
    """Folder to write."""
    ranks: int = 1
    """Files of the optimizer's state, each cut along the first dimension as fully sharded training does."""

    def __post_init__(self) -> None:
        if not 1 <= self.ranks <= MOST_RANKS:
            raise ConfigError(f"ranks: expected 1 to {MOST_RANKS}, got {self.ranks}")
