"""Configs of the verbs that learn from preferences. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fledge.errors import ConfigError
from fledge.recipes.config import BaseModelConfig, SampleConfig, check_fraction
from fledge.text.config import ChatConfig
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig

LossName = Literal["dpo", "hinge", "ipo", "kto", "orpo", "simpo"]
BETAS: dict[str, float] = {"dpo": 0.1, "hinge": 0.1, "ipo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
ALONE = ("orpo", "simpo")  # without a reference, of mean log-probabilities
SMOOTHED = ("dpo",)
MARGINS = ("dpo", "simpo")


@dataclass(frozen=True)
class PreferenceDataConfig:
    """Pairs of answers as JSON lines: prompt, chosen, rejected (docs/alignment.md lists the forms)."""

    path: str = ""
    """Training pairs (.jsonl); for loss kto answers with a label, or pairs."""
    val: str = ""
    """Held-out ones (.jsonl); empty: the last val_fraction of the training file."""
    val_fraction: float = 0.05
    """Share held out when `val` is empty."""
    too_long: Literal["cut", "leave_out"] = "cut"
    """What is done with an answer that ends beyond train.row_tokens: it is cut there, or its pair is left out. A pair
    that the cut leaves without a difference, or an answer without a token, is left out either way."""

    def __post_init__(self) -> None:
        check_fraction(self.val_fraction)


@dataclass(frozen=True)
class PreferenceConfig:
    """What is learnt from preferences. A score is an answer's log-probability less the reference's."""

    loss: LossName = "dpo"
    """dpo: -log σ(β difference of scores); hinge: 1 - β difference, at least 0; ipo: the difference towards 1 / (2 β);
    kto: each answer by its own label; orpo: odds of the chosen answer over the rejected one's, beside its nats; simpo:
    mean log-probabilities apart by gamma. orpo and simpo have no reference."""
    beta: float | None = None
    """How much a difference counts: a larger one stays nearer to the reference; of orpo the weight of the odds. Unset:
    0.1, for simpo 2."""
    gamma: float = 1.0
    """simpo: by how much rewards shall differ."""
    label_smoothing: float = 0.0
    """dpo: share of the labels that are taken to be wrong (conservative DPO)."""
    length_normalised: bool | None = None
    """Means over an answer's tokens in place of sums. Unset: for ipo, orpo and simpo."""
    reference: Literal["base", "none"] = "base"
    """What scores are relative to: the model that tuning starts from, or nothing (not for kto)."""
    nats_weight: float | None = None
    """Weight of the chosen answers' own nats a token, added to the loss. Unset: 1 for orpo, else 0."""
    good_weight: float = 1.0
    """kto: weight of good answers."""
    bad_weight: float = 1.0
    """kto: weight of bad ones."""

    def __post_init__(self) -> None:
        for name in ("beta", "good_weight", "bad_weight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"preference.{name}: expected a finite number above 0, got {value}")
        for name in ("gamma", "nats_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"preference.{name}: expected a finite number of at least 0, got {value}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"preference.label_smoothing: expected 0 to below 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.loss not in SMOOTHED:
            raise ConfigError(f"preference.label_smoothing: read with loss=dpo only, got loss={self.loss}")
        if self.loss in ALONE and self.length_normalised is False:
            raise ConfigError(f"preference.length_normalised: {self.loss} is of mean log-probabilities; leave it unset")
        if self.loss == "kto" and self.reference == "none":
            raise ConfigError("preference.reference: kto is relative to a reference; leave it at base")
        if self.loss == "kto" and self.nats_weight:
            raise ConfigError("preference.nats_weight: read with losses of pairs only, got loss=kto")

    @property
    def strength(self) -> float:
        """β."""
        return BETAS[self.loss] if self.beta is None else self.beta

    @property
    def means(self) -> bool:
        """Whether scores are means over tokens."""
        return self.loss in ("ipo", *ALONE) if self.length_normalised is None else self.length_normalised

    @property
    def has_reference(self) -> bool:
        return self.reference == "base" and self.loss not in ALONE

    @property
    def weight_of_nats(self) -> float:
        return float(self.loss == "orpo") if self.nats_weight is None else self.nats_weight


@dataclass(frozen=True)
class AlignConfig:
    """Move a tuned model towards answers that were preferred."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True)
class RewardConfig:
    """What a reward model learns."""

    centring: float = 0.0
    """Weight of the square of a pair's summed rewards, which holds their mean near zero (0.01, say)."""
    bins: int = 10
    """Bins of the reliability table."""

    def __post_init__(self) -> None:
        if not 0 <= self.centring < math.inf:
            raise ConfigError(f"reward.centring: expected a finite number of at least 0, got {self.centring}")
        if not 2 <= self.bins <= 1000:
            raise ConfigError(f"reward.bins: expected 2 to 1000, got {self.bins}")


@dataclass(frozen=True)
class AlignRewardConfig:
    """Train a reward model on pairs of answers."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: PreferenceDataConfig = field(default_factory=PreferenceDataConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
