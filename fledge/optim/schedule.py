"""Learning-rate schedules as pure functions of the step. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up, then a shape down to `floor` (a share of the peak) at the last step."""

    name: Literal["cosine", "linear", "constant"]
    steps: int
    warmup_steps: int
    floor: float

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.steps > 0 and self.warmup_steps > 0:
            raise ConfigError(f"train.warmup_steps: expected fewer than steps {self.steps}, got {self.warmup_steps}")
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"train.learning_rate_floor: expected a share in 0..1, got {self.floor}")


def rate_share(step: int, config: ScheduleConfig) -> float:
    """Share of the peak rate for update `step` (counted from 0), 0..1.

    Linear over the warm-up (its first update is not 0), then cosine (Loshchilov & Hutter 2017, eq. 5),
    linear, or constant.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    if config.name == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.name == "cosine" else 1.0 - done
    return config.floor + (1.0 - config.floor) * shape
