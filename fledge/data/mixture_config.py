"""Configs of a mixture of datasets. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fledge.errors import ConfigError


@dataclass(frozen=True)
class SourceConfig:
    """One dataset of a mixture."""

    path: str
    """A dataset folder (from data build). All of a mixture have the same tokenizer."""
    weight: float = 1.0
    """Its part of the tokens: 3 beside 1 is three quarters. Also its part in the validation's overall figures."""
    name: str = ""
    """What logs and stages call it; empty: the folder's name."""
    max_epochs: float = 0.0
    """How often it is read at most; after that the others share its part. 0: as often as it takes."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError("path: expected a dataset folder, got none; set path")
        for key in ("weight", "max_epochs"):
            if not 0 <= getattr(self, key) <= 1e9:
                raise ConfigError(f"{key}: expected 0 to 1e9, got {getattr(self, key)}")
        if any(mark in self.name for mark in "/.= \n"):
            raise ConfigError(f"name: expected a word without blanks, /, . and =, got {self.name!r}")

    @property
    def called(self) -> str:
        return self.name or Path(self.path).absolute().name.replace(".", "_").replace(" ", "_").replace("=", "_")


@dataclass(frozen=True)
class StageConfig:
    """Other weights from some step on."""

    from_step: int = 0
    """The first batch that they hold for, counted as they are drawn (a skipped one counts)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Each source's part of the tokens, by name; one that is left out has none."""
    ramp_steps: int = 0
    """Batches in which the shares go over from those before, in a straight line; 0: at once."""

    def __post_init__(self) -> None:
        for key in ("from_step", "ramp_steps"):
            if not 0 <= getattr(self, key) <= 1 << 40:
                raise ConfigError(f"{key}: expected 0 to 2^40, got {getattr(self, key)}")
        if not all(0 <= weight <= 1e9 for weight in self.weights.values()) or not sum(self.weights.values()) > 0:
            raise ConfigError(f"weights: expected 0 to 1e9 for each source and one above 0, got {self.weights}")


def check_mixture(sources: Sequence[SourceConfig], stages: Sequence[StageConfig]) -> None:
    """Raises ConfigError for names that stand twice, stages out of order, and weights of sources that aren't there."""
    names = [source.called for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"data.mixture: expected each name once, got {twice} twice; give one of them a `name`")
    if sources and not any(source.weight for source in sources):
        raise ConfigError("data.mixture: expected a weight above 0, got none; raise one")
    for number, stage in enumerate(stages):
        at = f"data.stages[{number}]"
        unknown = sorted(set(stage.weights) - set(names))
        if unknown:
            known = ", ".join(names) or "none: a stage changes a mixture; set data.mixture"
            raise ConfigError(f"{at}.weights: expected names of sources, got {unknown[0]!r}; known: {known}")
        before = stages[number - 1] if number else None
        first = before.from_step + before.ramp_steps + 1 if before else 0
        if stage.from_step < first:
            raise ConfigError(
                f"{at}.from_step: expected at least {first}, after the stage before, got {stage.from_step}"
            )
