"""How a policy learns from rewards: GRPO, RLOO, PPO. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError

Normalise = Literal["token", "sequence", "constant"]


@dataclass(frozen=True)
class GrpoConfig:
    """Group-relative policy optimisation, and REINFORCE with a leave-one-out baseline."""

    advantage: Literal["group", "rloo"] = "group"
    """What an answer's reward is measured against: group, the mean of all answers to its prompt (GRPO); rloo, the mean
    of the others."""
    by_deviation: bool = True
    """group: divide by the standard deviation of the prompt's rewards; off: as Dr. GRPO."""
    clip: float = 0.2
    """How far the probability ratio may fall below 1 before it stops counting."""
    clip_high: float = 0.0
    """How far it may rise above 1; 0: as far as clip (DAPO: 0.28)."""
    normalise: Normalise = "token"
    """What a step's loss is a mean over: token, all tokens of answers (DAPO); sequence, answers, each the mean of its
    tokens (GRPO's paper); constant, answers of rollout.max_tokens tokens (Dr. GRPO)."""
    kl: float = 0.0
    """Weight of the distance from the reference model (k3) in the loss."""
    kl_in_reward: float = 0.0
    """Weight of log π/π_ref of the whole answer, taken off its reward (RLOO's paper)."""
    entropy: float = 0.0
    """Weight of the policy's entropy, which the loss then rewards."""

    def __post_init__(self) -> None:
        at_least_0("grpo", self, "clip_high", "kl", "kl_in_reward", "entropy")
        if not 0 < self.clip < 1:
            raise ConfigError(f"grpo.clip: expected a number above 0 and below 1, got {self.clip}")

    @property
    def high(self) -> float:
        return self.clip_high or self.clip


@dataclass(frozen=True)
class PpoConfig:
    """Proximal policy optimisation with a value head."""

    gamma: float = 1.0
    """What a later reward counts, a token."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation: 1, returns minus values; 0, one step ahead."""
    clip: float = 0.2
    """How far the probability ratio may leave 1 before it stops counting."""
    value_clip: float = 0.2
    """How far a value may leave the rollout's before it stops counting; 0: as far as it likes."""
    value: float = 0.1
    """Weight of the value loss."""
    whiten: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and deviation 1."""
    kl: float = 0.05
    """Weight of log π/π_ref, taken off each token's reward; what the adaptive controller begins with."""
    kl_target: float = 0.0
    """Adaptive controller: the distance of a whole answer from the reference model, in nats, that `kl` is moved
    towards; 0: `kl` stays."""
    kl_horizon: int = 10_000
    """Adaptive controller: answers in which `kl` moves by its full error."""
    entropy: float = 0.0
    """Weight of the policy's entropy, which the loss then rewards."""

    def __post_init__(self) -> None:
        at_least_0("ppo", self, "value_clip", "value", "kl", "kl_target", "entropy")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"ppo.{name}: expected a number in 0..1, got {getattr(self, name)}")
        if not 0 < self.clip < 1:
            raise ConfigError(f"ppo.clip: expected a number above 0 and below 1, got {self.clip}")
        if self.kl_horizon < 1:
            raise ConfigError(f"ppo.kl_horizon: expected at least 1, got {self.kl_horizon}")


def at_least_0(group: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ConfigError(f"{group}.{name}: expected a finite number of at least 0, got {value}")


RewardKind = Literal["number", "text", "regex", "length", "code", "model"]


@dataclass(frozen=True)
class RewardConfig:
    """One part of a reward, from 0 to 1 but for a reward model's."""

    kind: RewardKind
    """number: the answer's last number is the row's; text: the answer is the row's; regex: the whole answer matches;
    length: near a wanted number of tokens; code: the answer's code passes the row's tests; model: a reward model."""
    weight: float = 1.0
    """What it counts in the sum."""
    field: str = "answer"
    """number, text: the key of a prompt's row that holds the right answer; code: the key of its tests."""
    pattern: str = ""
    """regex: a regular expression; number, text: what of the answer is read, its first group."""
    tokens: int = 0
    """length: the wanted number of tokens; the reward falls by 1 / tokens for each token off it."""
    seconds: float = 5.0
    """code: seconds of the processor, and of the clock, that a program gets."""
    memory_bytes: int = 256 << 20
    """code: address space that a program gets."""
    path: str = ""
    """model: the folder of a reward model."""

    def __post_init__(self) -> None:
        needs = {"regex": "pattern", "length": "tokens", "model": "path"}.get(self.kind)
        if needs and not getattr(self, needs):
            raise ConfigError(f"rewards.{needs}: expected one for kind {self.kind}, got none; set it")
        try:
            re.compile(self.pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"rewards.pattern: expected a regular expression, got {self.pattern[:60]!r} ({error})"
            ) from None
        if not math.isfinite(self.weight):
            raise ConfigError(f"rewards.weight: expected a finite number, got {self.weight}")
        if self.tokens < 0 or not 0 < self.seconds <= 3600 or self.memory_bytes < 1 << 26:
            raise ConfigError(
                "rewards: expected tokens of at least 0, seconds above 0 and up to 3600 and memory_bytes of at least "
                f"{1 << 26}, got {self.tokens}, {self.seconds:g} and {self.memory_bytes}"
            )
