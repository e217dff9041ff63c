"""Learning-rate schedules as pure functions of the step. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError

ScheduleName = Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"]
DecayShape = Literal["linear", "cosine", "sqrt"]
Warmup = Literal["linear", "flat"]


@dataclass(frozen=True)
class ScheduleConfig:
    """Warm-up, then a shape down to `floor` (a share of the peak), which update `steps`, one after the last, would
    have.

    `decay_share`, `decay_shape`: which part of all steps "wsd" comes down in, and how. `warmup`: linear from almost 0,
    or flat at the peak.
    """

    name: ScheduleName
    steps: int
    warmup_steps: int
    floor: float
    decay_share: float = 0.2
    decay_shape: DecayShape = "linear"
    warmup: Warmup = "linear"

    def __post_init__(self) -> None:
        if self.warmup_steps >= self.steps > 0 and self.warmup_steps > 0:
            raise ConfigError(f"train.warmup_steps: expected fewer than steps {self.steps}, got {self.warmup_steps}")
        if not 0.0 <= self.floor <= 1.0:
            raise ConfigError(f"train.learning_rate_floor: expected a share in 0..1, got {self.floor}")
        if not 0.0 < self.decay_share <= 1.0:
            raise ConfigError(f"train.decay_share: expected a share above 0 and up to 1, got {self.decay_share}")
        if self.name == "wsd" and self.warmup_steps + self.decay_steps > self.steps:
            raise ConfigError(
                f"train.decay_share: expected warm-up {self.warmup_steps} and decay {self.decay_steps} to fit in "
                f"{self.steps} steps; make one of them shorter"
            )

    @property
    def decay_steps(self) -> int:
        """Updates in which "wsd" comes down, at least two: the first of them still has the peak."""
        return min(self.steps, max(2, round(self.decay_share * self.steps)))


def rate_share(step: int, config: ScheduleConfig) -> float:
    """Share of the peak rate for update `step` (counted from 0), 0..1.

    The warm-up's first update is not 0. Then: cosine (Loshchilov & Hutter 2017, eq. 5); linear; constant; wsd, constant
    until its decay (Hu et al. 2024, arXiv 2404.06395, §4; the shape sqrt is 1 - sqrt of Hägele et al. 2024, arXiv
    2405.18392); inverse_sqrt, sqrt(warm-up / step), down to the floor (Vaswani et al. 2017, eq. 3; with a flat warm-up
    Raffel et al. 2020, §3.1.2).
    """
    if step < config.warmup_steps:
        return 1.0 if config.warmup == "flat" else (step + 1) / (config.warmup_steps + 1)
    if config.name == "constant":
        return 1.0
    if config.name == "inverse_sqrt":
        return max(config.floor, math.sqrt((config.warmup_steps + 1) / (step + 1)))
    begun = config.steps - config.decay_steps if config.name == "wsd" else config.warmup_steps
    done = min(1.0, max(0.0, (step - begun) / max(1, config.steps - begun)))
    shape = falling(done, config.decay_shape if config.name == "wsd" else config.name)
    return config.floor + (1.0 - config.floor) * shape


def falling(done: float, shape: str) -> float:
    """From 1 at `done` = 0 to 0 at 1."""
    if shape == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0 - math.sqrt(done) if shape == "sqrt" else 1.0 - done
