"""How a model is tuned: all of its weights, or a few beside them. Imports no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fledge.config import check_threads
from fledge.errors import ConfigError
from fledge.model.show_config import ShowConfig

MAX_RANK = 1 << 16
MAX_TARGETS = 4096
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = {
    "lora": ("q", "v"),
    "ia3": ("k", "v", "down"),
    "houlsby": ("attention.out", "ffn.down"),
    "pfeiffer": ("ffn.down",),
}


@dataclass(frozen=True)
class TuneConfig:
    """Which weights are trained: all, or an adapter beside the base's, which stay as they are."""

    method: Literal["full", "lora", "ia3", "houlsby", "pfeiffer", "prompt", "prefix"] = "full"
    """full: every weight. lora: low-rank updates of maps and embeddings. ia3: scales of what maps give or read.
    houlsby: a bottleneck behind attention and feed-forward of each layer; pfeiffer: behind the feed-forward alone.
    prompt: embeddings of virtual tokens before every document. prefix: their keys and values in each layer."""
    rank: int = 8
    """lora: rank of an update."""
    alpha: float = 16.0
    """lora: an update counts alpha / rank times."""
    dropout: float = 0.0
    """lora: share of a map's inputs that its update does not see in training."""
    targets: tuple[str, ...] = ()
    """Modules, each by the end of its name (q_proj) or a regular expression for all of it, as transformers calls them
    or as fledge does (q, attention.out); all-linear: every linear map but the output. Empty: q and v for lora, k, v
    and down for ia3, attention.out and ffn.down for houlsby, ffn.down for pfeiffer."""
    freeze: tuple[str, ...] = ()
    """full: modules whose weights, and those of all in them, stay as they are, by names as in targets (layers.0,
    embed_tokens)."""
    exclude: tuple[str, ...] = ()
    """Modules that are left out, written as targets are."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """lora: other ranks for some modules, by names as in targets."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """lora: other alphas for some modules."""
    rslora: bool = False
    """lora: an update counts alpha / √rank times (Kalajdzievski 2023, arXiv 2312.03732)."""
    dora: bool = False
    """lora: the length of each output's row is trained apart from its direction (DoRA)."""

    bottleneck: int = 64
    """houlsby, pfeiffer: numbers between an adapter's two maps."""
    activation: Literal["gelu", "relu", "silu"] = "gelu"
    """houlsby, pfeiffer: what is between the two."""
    virtual_tokens: int = 20
    """prompt, prefix: how many virtual tokens stand before a document; they take their share of the context."""
    init: Literal["random", "vocabulary", "text"] = "random"
    """prompt, prefix: what virtual tokens begin as: normal numbers, embeddings of random tokens (of a prefix what the
    layers make of them), or those of init_text."""
    init_text: str = ""
    """prompt, prefix: the text that they begin as, repeated or cut to virtual_tokens."""
    projection: int = 0
    """prefix: keys and values are made by two maps with so many numbers between them, which training needs alone (Li &
    Liang 2021); 0: they are trained themselves."""

    def __post_init__(self) -> None:
        for at, rank in (("rank", self.rank), *((f"rank_pattern.{k}", v) for k, v in self.rank_pattern.items())):
            if not 1 <= rank <= MAX_RANK:
                raise ConfigError(f"tune.{at}: expected 1 to {MAX_RANK}, got {rank}")
        for at, alpha in (("alpha", self.alpha), *((f"alpha_pattern.{k}", v) for k, v in self.alpha_pattern.items())):
            if not 0 < abs(alpha) < math.inf:
                raise ConfigError(f"tune.{at}: expected a finite number other than 0, got {alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"tune.dropout: expected a share from 0 to below 1, got {self.dropout}")
        patterns = (*self.targets, *self.freeze, *self.exclude, *self.rank_pattern, *self.alpha_pattern)
        if len(patterns) > MAX_TARGETS:
            raise ConfigError(f"tune.targets: expected at most {MAX_TARGETS} patterns, got {len(patterns)}")
        for pattern in patterns:
            check_pattern(pattern)
        asked = [name for name in ("rank_pattern", "alpha_pattern", "rslora", "dora", "dropout") if getattr(self, name)]
        if asked and self.method != "lora":
            raise ConfigError(f"tune.{asked[0]}: read with tune.method=lora only, got method={self.method}")

        self.check_virtual()
        if self.freeze and self.method != "full":
            raise ConfigError(
                f"tune.freeze: read with tune.method=full only, where {self.method} freezes all of the base"
            )

    def check_virtual(self) -> None:
        """Raises ConfigError for numbers of virtual tokens and bottlenecks that are out of range or not read."""
        for name in ("bottleneck", "virtual_tokens", "projection"):
            low = 0 if name == "projection" else 1
            if not low <= getattr(self, name) <= MAX_RANK:
                raise ConfigError(f"tune.{name}: expected {low} to {MAX_RANK}, got {getattr(self, name)}")
        if self.projection and self.method != "prefix":
            raise ConfigError(f"tune.projection: read with tune.method=prefix only, got method={self.method}")
        for name in ("init_text", "init"):
            if getattr(self, name) not in ("", "random") and (self.projection or not self.virtual):
                beside = "tune.projection" if self.projection else f"method={self.method}"
                raise ConfigError(
                    f"tune.{name}: read with tune.method=prompt, or prefix without a projection, got {beside}"
                )
        if (self.init == "text") != bool(self.init_text):
            raise ConfigError("tune.init_text: expected a text with tune.init=text, and none without; set both")
        if self.virtual and (self.targets or self.exclude):
            raise ConfigError(f"tune.targets: expected none with tune.method={self.method}, which changes no modules")

    @property
    def is_bottleneck(self) -> bool:
        return self.method in ("houlsby", "pfeiffer")

    @property
    def virtual(self) -> int:
        """How many virtual tokens stand before a document."""
        return self.virtual_tokens if self.method in ("prompt", "prefix") else 0

    @property
    def trains_all(self) -> bool:
        """Whether every weight is trained."""
        return self.method == "full" and not self.freeze

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.targets or DEFAULT_TARGETS.get(self.method, ())

    def scale(self, rank: int, alpha: float) -> float:
        """What an update is multiplied by."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)


MAX_PATTERN = 1000  # characters
END = r"(.*\.)?({})$"  # how PEFT reads the names in patterns of ranks and alphas


def check_pattern(pattern: str, at: str = "tune.targets") -> None:
    """Raises ConfigError for what is no regular expression, or one that could take for ever: files bring them too."""
    if len(pattern) > MAX_PATTERN:
        raise ConfigError(f"{at}: expected at most {MAX_PATTERN} characters, got {len(pattern)}")
    try:
        re.compile(END.format(pattern))
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{at}: expected a regular expression, got {pattern[:60]!r} ({error})") from None
    repeats = len(re.findall(r"(?<![\\(])[*+{?]", pattern))  # but for (?:, and what a backslash makes a character
    if not pattern or repeats > 3 or re.search(r"\)[*+{?]", pattern):
        raise ConfigError(
            f"{at}: expected a name, or a regular expression with at most three repeats and none of a group, got "
            f"{pattern[:60]!r}; name the modules one by one"
        )


def matches(pattern: str, name: str) -> bool:
    """Whether a pattern means the module called `name`: its whole name, its end after a dot, or as an expression."""
    return name == pattern or name.endswith(f".{pattern}") or re.fullmatch(pattern, name) is not None


def by_pattern(patterns: dict[str, float], names: tuple[str, ...], default: float) -> float:
    """The value of the first pattern that means one of `names`."""
    for pattern, value in patterns.items():
        if any(matches(pattern, name) or re.match(END.format(pattern), name) for name in names):
            return value
    return default


@dataclass(frozen=True)
class MergeConfig:
    """A model folder of a base with an adapter in its weights, written only if its answers are those of the two."""

    base: Path
    """Model folder that the adapter was trained on."""
    adapter: Path
    """Adapter folder, fledge's or PEFT's, or the run folder of a tuning."""
    out: Path
    """The folder to write; it must not exist or be empty."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Type of the weights that are written; empty: the base's."""
    prompts: int = 4
    """Rows of fixed random tokens on which logits are compared."""
    prompt_tokens: int = 32
    """Tokens of a row; a shorter context gives its own length."""
    tolerance: float = 0.0
    """Largest difference of a logit, as a share of the largest logit (of 1, if that is more); 0: 1e-5 for float32, 2e-2
    for bfloat16, 3e-3 for float16, whose weights are rounded."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        for name, (low, high) in {"prompts": (1, 1024), "prompt_tokens": (1, 4096)}.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low} to {high}, got {getattr(self, name)}")
        if not 0 <= self.tolerance <= 1:
            raise ConfigError(f"tolerance: expected 0 to 1, got {self.tolerance}")


@dataclass(frozen=True)
class ShowTunedConfig(ShowConfig):
    """What a model would be, and how much of it a method trains, from its config alone: nothing is allocated."""

    tune: TuneConfig = field(default_factory=TuneConfig)
