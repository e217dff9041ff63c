"""Configs of the training verbs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.data.mixture_config import SourceConfig, StageConfig, check_mixture
from fledge.data.objectives import InfillConfig, MaskingConfig, NoiseConfig, Objective, PairsConfig, SpansConfig
from fledge.errors import ConfigError
from fledge.model.config import ShapeConfig
from fledge.text.config import ChatConfig, ReadingConfig
from fledge.train.config import RunConfig, TrainConfig
from fledge.tune.config import TuneConfig


@dataclass(frozen=True)
class TextDataConfig:
    """What a language model is trained on."""

    path: str = ""
    """A dataset folder (from data build), a folder of text, or one text file."""
    mixture: tuple[SourceConfig, ...] = ()
    """Several dataset folders in place of `path`, by weights: [{path: A, weight: 3}, {path: B}]."""
    stages: tuple[StageConfig, ...] = ()
    """Other weights of the mixture from some step on: [{from_step: 500, weights: {A: 1}, ramp_steps: 100}]."""
    tokenizer: str = ""
    """For raw text: a tokenizer folder, "characters" or "bytes" (the default). A dataset folder brings its own."""
    val_fraction: float = 0.1
    """For raw text without held-out documents: the share at the end that is held out."""
    cross_documents: bool = False
    """Let attention and loss cross document boundaries (the classic concatenation); off keeps documents apart."""
    layout: Literal["packed", "padded"] = "packed"
    """For objective masked and for encoder-decoders: short documents side by side in a row, apart all the same, or each
    in a row of its own."""

    def __post_init__(self) -> None:
        check_fraction(self.val_fraction)
        if self.mixture and self.path:
            raise ConfigError("data.path: expected none beside data.mixture; make it one of the mixture")
        check_mixture(self.mixture, self.stages)


@dataclass(frozen=True)
class ChatDataConfig:
    """Conversations: JSON lines of OpenAI messages, ShareGPT or Alpaca."""

    path: str = ""
    """Training conversations (.jsonl)."""
    val: str = ""
    """Held-out conversations (.jsonl); empty: the last val_fraction of the training file."""
    val_fraction: float = 0.05
    """Share held out when `val` is empty."""

    def __post_init__(self) -> None:
        check_fraction(self.val_fraction)


def check_fraction(value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"val_fraction: expected at least 0 and below 1, got {value}")


@dataclass(frozen=True)
class BaseModelConfig:
    """The model that tuning starts from."""

    path: str = ""
    """A model folder or a run folder."""


@dataclass(frozen=True)
class SampleConfig:
    """Samples on the way."""

    prompt: str = ""
    """Text to continue (pretrain) or user message to answer (sft); empty: from nothing."""
    max_tokens: int = 48
    """Tokens of a sample."""
    temperature: float = 0.7
    """Temperature of a sample; 0 is greedy."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"sample.max_tokens: expected at least 1, got {self.max_tokens}")
        if not 0 <= self.temperature <= 100:
            raise ConfigError(f"sample.temperature: expected a number in 0..100, got {self.temperature}")


@dataclass(frozen=True)
class PretrainConfig:
    """Train a language model from initial weights."""

    model: ShapeConfig = field(default_factory=ShapeConfig)
    data: TextDataConfig = field(default_factory=TextDataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    init_from: str = ""
    """A model or run folder whose weights training goes on from (continued pre-training): its shape and its tokenizer
    are taken, model.* is left alone. Empty: initial weights."""
    keep_zeros: bool = False
    """Weights of linear maps inside the blocks that are zero in init_from stay zero: what pruning took is not tuned
    back in."""
    objective: Objective = "causal"
    """What is learnt: causal, the next token (decoders); masked, hidden tokens (encoders); masked+next and
    masked+order, these and whether the second of two segments is the next one, or in order (bert, albert, big_bird);
    spans, what sentinels stand for (t5); denoise, the text from a spoilt one (bart); prefix, how a text goes on
    (encoder-decoders, and decoders that see the prefix whole)."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    spans: SpansConfig = field(default_factory=SpansConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    infill: InfillConfig = field(default_factory=InfillConfig)

    def __post_init__(self) -> None:
        if self.keep_zeros and not self.init_from:
            raise ConfigError("keep_zeros: read with init_from, whose zeros are kept; set it, or leave keep_zeros out")
        if self.keep_zeros and self.train.optimizer == "muon":
            raise ConfigError("keep_zeros: expected train.optimizer=adamw, got muon, whose updates mix all weights")


@dataclass(frozen=True)
class RangeConfig:
    """Which learning rates to try."""

    low: float = 1e-6
    """Rate of the first step."""
    high: float = 1.0
    """Rate of the last step, if the loss does not diverge before."""
    steps: int = 200
    """Steps, each at a rate higher by the same factor."""
    smoothing: float = 0.9
    """Weight of the mean of earlier losses in the curve that is read."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ConfigError(f"range.low: expected a rate above 0 and below range.high {self.high}, got {self.low}")
        if not 10 <= self.steps <= 1_000_000:
            raise ConfigError(f"range.steps: expected 10 to 1,000,000, got {self.steps}")
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"range.smoothing: expected a number from 0 to below 1, got {self.smoothing}")


@dataclass(frozen=True)
class LrRangeConfig(PretrainConfig):
    """A learning-rate range test of a pre-training run: its config, and which rates."""

    range: RangeConfig = RangeConfig()
    out: Path = Path("out/lr-range")
    """Folder for range.json, range.html and, from raw text, shards; run.dir is not touched."""


@dataclass(frozen=True)
class TuneBatchConfig(PretrainConfig):
    """The largest micro-batch of a pre-training run that fits in memory."""

    memory_share: float = 0.9
    """Share of the free memory that training may take."""
    memory_bytes: int = 0
    """Bytes that training may take; 0: by memory_share."""
    out: Path = Path("out/tune-batch")
    """Folder for shards made from raw text; run.dir is not touched."""

    def __post_init__(self) -> None:
        if not 0 < self.memory_share <= 1:
            raise ConfigError(f"memory_share: expected a share above 0 and up to 1, got {self.memory_share}")
        if self.memory_bytes < 0:
            raise ConfigError(f"memory_bytes: expected 0 or more, got {self.memory_bytes}")


@dataclass(frozen=True)
class SftConfig:
    """Instruction-tune a model: loss on the assistant's tokens only."""

    model: BaseModelConfig = field(default_factory=BaseModelConfig)
    data: ChatDataConfig = field(default_factory=ChatDataConfig)
    chat: ChatConfig = field(default_factory=ChatConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    run: RunConfig = field(default_factory=RunConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)


@dataclass(frozen=True)
class BaselinesConfig:
    """What counting alone says of the held-out targets of a finished run."""

    run: Path
    """Run folder of `pretrain`."""
    batches: int = 2000
    """For encoder-decoders: training batches whose targets are counted."""

    def __post_init__(self) -> None:
        if self.batches < 1:
            raise ConfigError(f"batches: expected at least 1, got {self.batches}")


@dataclass(frozen=True)
class InspectConfig(PretrainConfig):
    """Show what is in a dataset, a corpus or a source; of a dataset also a row as pretrain would train on it."""

    path: str = ""
    """A folder written by `data build`, or any source that it reads."""
    documents: int = 3
    """How many of the first documents are shown."""
    characters: int = 200
    """How much of each."""
    split: Literal["train", "val"] = "train"
    """Of which split, in a folder written by `data build`."""
    row: int = 0
    """Which row, counted through training in its order; of the split val through the rows of a validation. The keys of
    pretrain say of which objective, length and seed; its YAML file can be given too."""
    tokens: int = 48
    """How many tokens of the row are shown."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        for name, least in (("documents", 0), ("characters", 0), ("row", 0), ("tokens", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
