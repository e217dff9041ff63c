"""Configs of the verbs of scaling laws. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError
from fledge.recipes.config import PretrainConfig
from fledge.scaling.points import Count


@dataclass(frozen=True)
class SizeConfig:
    """A size of the sweep: what differs from the base config."""

    width: int
    """Channels of the residual stream."""
    layers: int
    """Number of blocks."""
    heads: int = 0
    """Attention heads; 0: the base config's, whose channels then change."""
    learning_rate: float = 0.0
    """Peak learning rate; 0: the base config's."""

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sizes.{name}: expected at least 1, got {getattr(self, name)}")
        if self.heads < 0 or self.learning_rate < 0:
            raise ConfigError("sizes: expected heads and learning_rate of at least 0, got less")


@dataclass(frozen=True)
class SweepConfig:
    """Pre-train models of several sizes on several numbers of tokens."""

    base: PretrainConfig = field(default_factory=PretrainConfig)
    """The run that all are variants of; its steps and run.dir are set by the sweep."""
    sizes: tuple[SizeConfig, ...] = ()
    """The sizes."""
    tokens: tuple[float, ...] = ()
    """Numbers of training tokens, each for every size."""
    flops: tuple[float, ...] = ()
    """Budgets of 6 N D instead, each shared by every size (IsoFLOP curves)."""
    count: Count = "total"
    """Which N the budgets are of."""
    seeds: tuple[int, ...] = (1,)
    """Seeds, each for every point."""
    warmup_share: float = 0.0
    """Warm-up as a share of each run's steps; 0: the base config's steps."""
    processes: int = 1
    """Runs at a time; each above 1 in a process of its own, with base.train.threads threads."""
    out: Path = Path("out/scaling")
    """Folder for points.jsonl and the runs."""

    def __post_init__(self) -> None:
        if bool(self.tokens) == bool(self.flops):
            raise ConfigError("tokens: expected numbers of tokens or budgets in flops, one of the two")
        for name in ("tokens", "flops"):
            for value in getattr(self, name):
                if not 0 < value <= 1e30:
                    raise ConfigError(f"{name}: expected numbers above 0 and up to 1e30, got {value}")
        if not self.sizes or not self.seeds:
            raise ConfigError("sizes: expected at least one size and one seed, got none; see --help")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"warmup_share: expected a share from 0 to below 1, got {self.warmup_share}")
        if not 1 <= self.processes <= 1024:
            raise ConfigError(f"processes: expected 1 to 1024, got {self.processes}")


@dataclass(frozen=True)
class FitConfig:
    """Laws through the points of a sweep."""

    points: Path
    """points.jsonl of a sweep, or its folder."""
    count: Count = "total"
    """Which N: all parameters, or without embeddings, position tables and the output matrix."""
    bootstrap: int = 500
    """Bootstrap samples behind the intervals; 0: no intervals, and nothing to predict with."""
    seed: int = 1
    """Decides the samples."""
    delta: float = 1e-3
    """Where Huber's loss on log L turns from a square into a line."""
    out: Path | None = None
    """The result, a file ending in .json; unset: fit.json beside the points. The page is written beside it, as
    .html."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".json":
            raise ConfigError(f"out: expected a file ending in .json, got {self.out}")
        if self.bootstrap and not 20 <= self.bootstrap <= 10_000:
            raise ConfigError(f"bootstrap: expected 0, or 20 to 10000 samples, got {self.bootstrap}")
        if not 0 < self.delta <= 1e6:
            raise ConfigError(f"delta: expected a number above 0, got {self.delta}")
        if self.seed < 0:
            raise ConfigError(f"seed: expected at least 0, got {self.seed}")


@dataclass(frozen=True)
class PlanConfig:
    """The compute-optimal size and number of tokens for a budget."""

    fit: Path | None = None
    """fit.json of your own sweep; unset: published constants."""
    approach: Literal[1, 2, 3] = 3
    """Which of the fit's approaches."""
    constants: Literal["chinchilla", "chinchilla_precise", "besiroglu", "kaplan", "twenty"] = "besiroglu"
    """Published constants: of Hoffmann et al. 2022 as printed, with their source's digits, refitted by Besiroglu et al.
    2024, of Kaplan et al. 2020, or 20 tokens for each parameter."""
    flops: float = 0.0
    """The budget in FLOPs; or give hours, or money."""
    hours: float = 0.0
    """The budget in hours of all devices together at work."""
    money: float = 0.0
    """The budget in the currency of price_per_hour."""
    device: Literal["v100", "a100", "h100", "h200", "rtx4090", "l4", "cpu"] = "a100"
    """What computes (published 16-bit peak); cpu: this machine's, measured in float32."""
    devices: int = 1
    """How many of them."""
    utilisation: float = 0.4
    """Share of the peak that they reach."""
    price_per_hour: float = 0.0
    """Price of one device for an hour."""
    vocab_size: int = 32000
    """Vocabulary of the suggested shape."""
    context_tokens: int = 2048
    """Context of the suggested shape."""

    def __post_init__(self) -> None:
        given = [name for name in ("flops", "hours", "money") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(f"flops: expected one budget of flops, hours and money, got {len(given)}")
        bounds: dict[str, tuple[float, float]] = {"flops": (0, 1e40), "hours": (0, 1e9), "money": (0, 1e15)}
        bounds |= {"price_per_hour": (0, 1e9)}
        bounds |= {"devices": (1, 1e7), "utilisation": (1e-6, 1), "vocab_size": (1, 1 << 24)}
        for name, (low, high) in (bounds | {"context_tokens": (1, 1 << 24)}).items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {getattr(self, name)}")
        if self.money and not self.price_per_hour:
            raise ConfigError("money: expected the price of a device too; set price_per_hour")


@dataclass(frozen=True)
class PredictConfig:
    """Say what a larger run's loss will be, before it runs."""

    fit: Path
    """fit.json of a sweep on the same data."""
    run: str = ""
    """The pretrain config (YAML) of the run to come: N, D and its folder are read from it."""
    parameters: float = 0.0
    """N, where no run is given; as the fit counts."""
    tokens: float = 0.0
    """D, where no run is given."""
    register: bool = True
    """Append the prediction to `out`, with time and digest; without: only show it."""
    seed: int = 1
    """Decides which residuals are drawn."""
    out: Path | None = None
    """The register, a file ending in .jsonl; unset: predictions.jsonl beside the fit."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".jsonl":
            raise ConfigError(f"out: expected a file ending in .jsonl, got {self.out}")
        sizes = (self.parameters, self.tokens)
        if bool(self.run) == any(sizes) or (any(sizes) and not all(0 < value <= 1e30 for value in sizes)):
            raise ConfigError("run: expected a pretrain config, or parameters and tokens above 0, one of the two")
        if self.seed < 0:
            raise ConfigError(f"seed: expected at least 0, got {self.seed}")


@dataclass(frozen=True)
class CheckConfig:
    """Compare a finished run with what was predicted of it."""

    predictions: Path
    """The register that scale predict wrote."""
    run: Path
    """The finished run's folder."""
