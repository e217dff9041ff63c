"""How a run trains. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.config import MOST_THREADS
from fledge.errors import ConfigError
from fledge.optim.config import GroupConfig, MuonConfig
from fledge.optim.schedule import DecayShape, ScheduleConfig, ScheduleName, Warmup
from fledge.parallel.config import ParallelConfig

MOST = {"rows": 1 << 20, "row_tokens": 1 << 24, "threads": MOST_THREADS, "steps": 1 << 40, "seed": (1 << 63) - 1}


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives."""

    dir: str = "out/run"
    """Run folder: run.yaml, log.jsonl, checkpoints/ and, at the end, model/."""

    def __post_init__(self) -> None:
        if "\0" in self.dir:
            raise ConfigError(f"run.dir: expected a path without NUL, got {self.dir[:60]!r}")


@dataclass(frozen=True)
class DropoutConfig:
    """What a pass in training leaves out by chance; nothing is left out in validation and use."""

    embedding: float | None = None
    """Share of what goes into the first block; unset: model.dropout."""
    residual: float | None = None
    """Share of what attention and feed-forward add to the residual; unset: model.dropout."""
    attention: float = 0.0
    """Share of the attention weights."""
    feed_forward: float = 0.0
    """Share of the hidden units of feed-forwards."""
    layers: float = 0.0
    """Share of whole layers (LayerDrop; Fan et al. 2019, arXiv 1909.11556): a model so trained can lose some later."""

    def __post_init__(self) -> None:
        for name in ("embedding", "residual", "attention", "feed_forward", "layers"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise ConfigError(f"train.dropout.{name}: expected a share from 0 to below 1, got {value}")

    @property
    def any(self) -> bool:
        """Whether anything is left out, besides what model.dropout says."""
        return bool(self.embedding or self.residual or self.attention or self.feed_forward or self.layers)


@dataclass(frozen=True)
class TrainConfig:
    """Steps, batch, optimizer, checkpoints. A step is one update of the weights."""

    steps: int = 1000
    """Updates of the weights."""
    rows: int = 8
    """Rows of the global batch."""
    micro_rows: int | Literal["auto"] = 0
    """Rows computed at once; 0: all; auto: as many as fit in memory (`fledge tune batch` tells). Gradients are
    accumulated exactly, so this changes memory and not the result; but dropout is drawn for these rows at a time, so
    that a run with dropout must keep the number it began with."""
    row_tokens: int = 0
    """Tokens a row; 0: the model's context."""
    checkpoint_blocks: bool = False
    """Keep only each block's input and recompute the block in the backward pass: the same gradients, bit for bit, in
    less memory and about a third more time (`fledge show --rows` tells both)."""
    dropout: DropoutConfig = DropoutConfig()
    """What is left out by chance, by place."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of matrix products and attention; weights, optimizer state, norms, losses and sums stay float32. float16
    scales its loss."""
    loss_scale: float = 65536.0
    """First loss scale of float16; a step that overflows is left out and halves it."""
    loss_scale_steps: int = 2000
    """Steps without overflow after which the loss scale doubles."""
    compile: Literal["off", "blocks", "model"] = "off"
    """Compile the model's training pass: blocks, each by itself (quick, and one compilation serves all equal ones), or
    model, all of it at once."""
    seed: int = 1
    """Decides initial weights, order of the data and dropout."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    learning_rate_floor: float = 0.1
    """What the learning rate comes down to, as a share of the peak: the rate of the step after the last."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate after the warm-up; wsd: constant, then down in the last steps; inverse_sqrt: the peak
    times sqrt(warm-up / step), not below the floor."""
    warmup_steps: int = 0
    """Steps of warm-up."""
    warmup: Warmup = "linear"
    """Shape of the warm-up: linear, or flat at the peak (as T5's)."""
    decay_share: float = 0.2
    """Share of the steps, and at least two of them, in which schedule wsd comes down towards the floor."""
    decay_shape: DecayShape = "linear"
    """How it comes down; sqrt: by 1 - sqrt(share done), steep at first."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """What moves the weights; muon: the matrices inside blocks by Muon, everything else by AdamW."""
    muon: MuonConfig = MuonConfig()
    """Muon's constants."""
    groups: tuple[GroupConfig, ...] = ()
    """Parameters that are trained in a way of their own, by patterns of names."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    epsilon: float = 1e-8
    """AdamW's epsilon."""
    ema_decay: float = 0.0
    """Decay of a running mean of the weights (0.999, say), kept in checkpoints and validated too; 0: none is kept."""
    publish_ema: bool = False
    """Publish the running mean as the model, instead of the last weights."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    save_every_steps: int = 500
    """Steps between checkpoints; 0: only at a best validation, at the end and when stopped."""
    checkpoint_async: bool = False
    """Write checkpoints behind the training, from a copy of weights and optimizer state in memory: training stands
    still for the copy alone, and a kill may cost one checkpoint more."""
    failed_save: Literal["stop", "continue"] = "stop"
    """What a checkpoint on the way that can't be written (a full disk) does; continue: a warning, and the next one is
    tried, and lines of log.jsonl wait until they can be written. The last one must be written either way."""
    keep_last: int = 2
    """Checkpoints kept, besides the best."""
    keep_every_steps: int = 0
    """Checkpoints of multiples of so many steps are kept for good; 0: none."""
    eval_every_steps: int = 250
    """Steps between validations; 0: only at the end."""
    eval_rows: int = 128
    """Rows of a validation on the way; 0: all. The last validation always takes all."""
    patience: int = 0
    """Validations on the way without a val_loss lower by min_delta, after which the run ends early and the better of
    its last weights and those of its best validation are published; 0: it goes to its last step."""
    min_delta: float = 0.0
    """By how much val_loss must fall to be waited for again."""
    publish_best: bool = False
    """Publish the better of the last weights and those of the best validation on the way, by the whole of the held-out
    data; patience does so too."""
    sample_every_steps: int = 0
    """Steps between samples of text; 0: none."""
    log_every_steps: int = 1
    """Steps between log lines."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a NaN or infinite loss or gradient does; stop saves first; the weights never see it either way."""
    max_skipped: int = 10
    """Steps that `skip` may leave out before the run stops; spikes are counted by themselves."""
    spike: Literal["off", "warn", "skip", "stop"] = "off"
    """What a loss or gradient norm far above those of the last steps does: warn, leave the step out, or stop."""
    spike_window: int = 128
    """Accepted steps by which spikes are judged."""
    spike_threshold: float = 10.0
    """How many deviations above the median are a spike; a deviation is 1.48 times the median absolute one."""
    watch_every_steps: int = 0
    """Steps between log lines of each layer's gradient norm, weight norm, share moved by the update, and dead units; 0:
    none."""
    stop_after_steps: int = 0
    """Save and stop once this many steps are done (exit 75); 0: never. The same command without it continues."""
    allow_changes: bool = False
    """Continue a run although its data or its config has changed."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    threads: int = 0
    """CPU threads; 0: torch's choice. The number decides the last bits of every sum."""
    parallel: ParallelConfig = ParallelConfig()
    """How the processes that a launcher starts share the run."""

    def __post_init__(self) -> None:
        low = {"steps": 1, "rows": 1, "micro_rows": 0, "row_tokens": 0, "keep_last": 1, "warmup_steps": 0}
        low |= dict.fromkeys(
            ("save_every_steps", "keep_every_steps", "eval_every_steps", "eval_rows", "sample_every_steps", "patience"),
            0,
        )
        low |= {"loss_scale_steps": 1, "spike_window": 2, "watch_every_steps": 0}
        low |= {"log_every_steps": 1, "max_skipped": 0, "stop_after_steps": 0, "threads": 0, "seed": 0}
        if self.micro_rows == "auto":
            del low["micro_rows"]
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ConfigError(f"train.{name}: expected at least {least}, got {getattr(self, name)}")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ConfigError(f"train.{name}: expected at most {most:,}, got {getattr(self, name):,}")
        if isinstance(self.micro_rows, int) and self.micro_rows and self.rows % self.micro_rows:
            raise ConfigError(f"train.micro_rows: expected a divisor of rows {self.rows}, got {self.micro_rows}")
        for name in ("learning_rate", "epsilon", "spike_threshold"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"train.{name}: expected a number above 0, got {getattr(self, name)}")
        for name in ("clip_norm", "weight_decay", "min_delta"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}: expected a number of at least 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"train.{name}: expected a number from 0 to below 1, got {getattr(self, name)}")
        if not 1 <= self.loss_scale <= 2**24:
            raise ConfigError(f"train.loss_scale: expected 1 to {2**24}, got {self.loss_scale}")
        if self.compile == "model" and self.checkpoint_blocks:
            raise ConfigError(
                "train.compile: expected blocks or off with train.checkpoint_blocks, got model, which can't be "
                "computed again block by block"
            )
        self.check_best()
        if self.publish_ema and not self.ema_decay:
            raise ConfigError("train.publish_ema: expected a running mean to publish, got none; set train.ema_decay")
        self.rate_schedule()

    def check_best(self) -> None:
        """Raises ConfigError where there is nothing to wait for, or to choose from."""
        if self.keeps_best and not self.eval_every_steps:
            raise ConfigError("train.eval_every_steps: expected validations to be patient about, got 0; set it")
        if self.keeps_best and self.publish_ema:
            raise ConfigError(
                "train.publish_ema: expected the best weights or their running mean, got both; choose one"
            )
        if self.min_delta and not self.patience:
            raise ConfigError(f"train.min_delta: read with train.patience only, got {self.min_delta}; set both")

    @property
    def keeps_best(self) -> bool:
        """Whether the weights of the best validation may be what is published."""
        return bool(self.patience or self.publish_best)

    def rate_schedule(self) -> ScheduleConfig:
        """The learning rate's course. Raises ConfigError for a warm-up beyond the run or a floor outside 0..1."""
        return ScheduleConfig(
            self.schedule, self.steps, self.warmup_steps, self.learning_rate_floor, self.decay_share, self.decay_shape,
            self.warmup,
        )  # fmt: skip


FREE_TO_CHANGE = (
    "steps", "save_every_steps", "keep_last", "keep_every_steps", "checkpoint_async", "failed_save", "eval_every_steps",
    "eval_rows", "sample_every_steps", "log_every_steps",
    "stop_after_steps", "allow_changes", "max_skipped", "non_finite", "device", "threads", "micro_rows",
    "checkpoint_blocks", "publish_ema", "compile", "spike", "spike_window", "spike_threshold", "watch_every_steps",
    "parallel", "patience", "min_delta", "publish_best",
)  # fmt: skip
