"""Configs of the verbs that learn from rewards. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from fledge.align.rl_config import GrpoConfig, PpoConfig, RewardConfig
from fledge.engine.request import MAX_STOPS
from fledge.errors import ConfigError
from fledge.recipes.config import BaseModelConfig, check_fraction
from fledge.text.config import ChatConfig
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig


@dataclass(frozen=True)
class PromptDataConfig:
    """Prompts: JSON lines with `prompt` (a text, continued as it stands) or `messages`, and whatever rewards read."""

    path: str = ""
    """Training prompts (.jsonl)."""
    val: str = ""
    """Held-out prompts (.jsonl); empty: the last val_fraction of the training file."""
    val_fraction: float = 0.05
    """Share held out when `val` is empty."""

    def __post_init__(self) -> None:
        check_fraction(self.val_fraction)


@dataclass(frozen=True)
class RolloutConfig:
    """What is sampled from the weights of now, and how often it is learned from."""

    prompts: int = 8
    """Prompts of a rollout."""
    samples: int = 8
    """Answers to each prompt."""
    max_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Temperature of the sampling; the policy that is trained is the one at this temperature."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's stop tokens."""
    epochs: int = 1
    """Times that each answer is learned from, in batches of train.rows."""
    missing_end_penalty: float = 0.0
    """Taken off the reward of an answer that max_tokens cut."""
    slots: int = 16
    """Answers that the engine runs side by side."""
    deterministic: bool = False
    """Insist on the compiled kernels, and check that one pass over each answer gives its log-probabilities again, to
    the bit."""

    def __post_init__(self) -> None:
        for name in ("prompts", "samples", "max_tokens", "epochs", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name}: expected at least 1, got {getattr(self, name)}")
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"rollout.temperature: expected a number in 0.01..100, got {self.temperature}")
        if len(self.stop) > MAX_STOPS or "" in self.stop:
            raise ConfigError(f"rollout.stop: expected at most {MAX_STOPS} texts, none empty, got {list(self.stop)}")
        if not 0 <= self.missing_end_penalty < math.inf:
            raise ConfigError(f"rollout.missing_end_penalty: expected at least 0, got {self.missing_end_penalty}")

    @property
    def answers(self) -> int:
        return self.prompts * self.samples


@dataclass(frozen=True)
class AlarmConfig:
    """When a rising reward is told to be suspect: in the log and as a warning."""

    window: int = 8
    """Rollouts of the first and of the last window, which are compared."""
    deviations: float = 3.0
    """Standard errors by which a difference of the two counts as one."""
    kl: float = 0.0
    """Nats a token from the reference model beyond which it is told; 0: never."""

    def __post_init__(self) -> None:
        if self.window < 2 or self.deviations <= 0 or self.kl < 0:
            raise ConfigError(
                "alarm: expected a window of at least 2, deviations above 0 and kl of at least 0, got "
                f"{self.window}, {self.deviations:g} and {self.kl:g}"
            )


@dataclass(frozen=True)
class RlConfig:
    """What GRPO and PPO share."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    reference: str = ""
    """Folder of the model that the distance is measured from; empty: model.path as it was."""
    data: PromptDataConfig = field(default_factory=PromptDataConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    rewards: tuple[RewardConfig, ...] = ()
    """What an answer is rewarded for: [{kind: number}, {kind: length, tokens: 20, weight: 0.1}]."""
    judge: tuple[RewardConfig, ...] = ()
    """What it is judged by beside, without being trained on it: a rising reward and a falling judge are an alarm."""
    alarm: AlarmConfig = field(default_factory=AlarmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    def __post_init__(self) -> None:
        answers, rows = self.rollout.answers, self.train.rows
        if answers % rows:
            raise ConfigError(
                f"train.rows: expected a divisor of a rollout's {answers} answers (rollout.prompts × rollout.samples), "
                f"got {rows}"
            )
        dropped = self.train.dropout.any or self.tune.dropout
        for key, wrong, why in (
            ("train.precision", self.train.precision != "float32", "float32: rollout and training must agree"),
            ("train.micro_rows", self.train.micro_rows == "auto", "a number: batches come from rollouts"),
            ("train.dropout", dropped, "none: a policy with dropout is another one in every pass"),
            ("train.compile", self.train.compile != "off", "off"),
        ):
            if wrong:
                raise ConfigError(f"{key}: expected {why}")

    @property
    def updates(self) -> int:
        """Updates of a rollout."""
        return self.rollout.epochs * self.rollout.answers // self.train.rows


@dataclass(frozen=True)
class GrpoRunConfig(RlConfig):
    """Learn from rewards by GRPO, or RLOO."""

    grpo: GrpoConfig = field(default_factory=GrpoConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.samples < 2:
            raise ConfigError("rollout.samples: expected at least 2 answers to a prompt, which are compared, got 1")


@dataclass(frozen=True)
class PpoRunConfig(RlConfig):
    """Learn from rewards by PPO, with a value head and generalised advantage estimation."""

    ppo: PpoConfig = field(default_factory=PpoConfig)


@dataclass(frozen=True)
class BestOfConfig:
    """Answer prompts several times and write the best answers as conversations to tune on (rejection sampling)."""

    model: str
    """Model, adapter or run folder."""
    data: str = ""
    """Prompts (.jsonl), as align grpo reads them."""
    out: Path = Path("out/best.jsonl")
    """File of conversations to write."""
    rewards: tuple[RewardConfig, ...] = ()
    """What the best is chosen by."""
    samples: int = 8
    """Answers to each prompt."""
    keep: int = 1
    """How many of them are written at most, the best first, each text once."""
    least: float = -math.inf
    """The least reward of an answer that is written."""
    whole: bool = True
    """Leave out answers that max_tokens cut."""
    max_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Temperature of the sampling."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's stop tokens."""
    slots: int = 16
    """Answers that the engine runs side by side."""
    seed: int = 1
    """Decides the answers."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 1 <= self.keep <= self.samples:
            raise ConfigError(f"keep: expected 1 to the {self.samples} samples, got {self.keep}")


@dataclass(frozen=True)
class MeasureConfig:
    """Sample a model's answers to prompts, and tell what they are worth and how far they are from a reference's."""

    model: str
    """Model, adapter or run folder."""
    data: str = ""
    """Prompts (.jsonl), as align grpo reads them."""
    reference: str = ""
    """Folder of the model that the distance is measured from; empty: the model itself, and no distance."""
    rewards: tuple[RewardConfig, ...] = ()
    """What an answer is worth."""
    judge: tuple[RewardConfig, ...] = ()
    """What it is judged by beside."""
    samples: int = 8
    """Answers to each prompt."""
    max_tokens: int = 64
    """Most tokens of an answer."""
    temperature: float = 1.0
    """Temperature of the sampling; log-probabilities, entropy and distance are of the policy at it."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, besides the model's stop tokens."""
    slots: int = 16
    """Answers that the engine runs side by side."""
    seed: int = 1
    """Decides the answers."""
    out: Path | None = None
    """File to write the answers to, as a rollout's: tokens, log-probabilities, rewards."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "slots"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0.01 <= self.temperature <= 100:
            raise ConfigError(f"temperature: expected a number in 0.01..100, got {self.temperature}")
