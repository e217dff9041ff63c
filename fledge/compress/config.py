"""Configuration of `fledge quantize`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.config import check_threads
from fledge.errors import ConfigError

LOSS_INCREASE: dict[int | str, float] = {8: 0.01, 4: 0.05, "mixed": 0.05}


@dataclass(frozen=True)
class QuantizeConfig:
    """A model folder with its linear maps in 8 or 4 bits, measured before and after, and written only if it is good
    enough."""

    model: Path
    """Model folder or run folder, in floating point."""
    out: Path
    """The folder to write; it must not exist or be empty."""
    method: Literal["rtn", "gptq", "awq"] = "gptq"
    """rtn: round to nearest, without data. gptq: each column's error is made up for by the columns after it. awq: large
    inputs get more of the range, by scales folded into what comes before."""
    bits: Literal[8, 4, "mixed"] = 8
    """Bits a weight; mixed: 4, 8 or as it is for each map, by what it does to the loss, within budget_bits."""
    group: Literal[32, 64, 128] = 32
    """Inputs that share a scale and a zero point in 4 bits."""
    budget_bits: float = 5.0
    """mixed: bits a weight on average over the linear maps, scales and zero points included."""
    calibration: Path | None = None
    """Text that gptq, awq and mixed look at: a file, a folder, JSON lines, or a folder written by `data build` (its
    training documents)."""
    rows: int = 128
    """Rows of calibration text."""
    row_tokens: int = 0
    """Tokens of such a row; 0: the model's context, 512 at most."""
    seed: int = 0
    """Decides which rows."""
    act_order: bool = False
    """gptq: columns with large inputs first; where grids are fixed beforehand, as here, that has lost more than it
    gained."""
    damping: float = 0.01
    """gptq: share of the mean of the Hessian's diagonal that is added to it."""
    output: Literal["keep", "int8"] = "keep"
    """The output matrix over the vocabulary: as it is, or in 8 bits (beside the embedding where the two were tied)."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Type of what is not quantized; empty: the model's own."""
    evaluate: Path | None = None
    """Text to measure on, as `fledge evaluate` reads it; none: nothing is measured and nothing is promised."""
    max_loss_increase: float | None = None
    """Most that the loss may rise, in nats a token (0.01 is one percent of perplexity); nothing is written beyond it.
    Without a value 0.01 for 8 bits and 0.05 for 4 and mixed."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""

    def __post_init__(self) -> None:
        bounds = {"rows": (1, 1 << 20), "row_tokens": (0, 1 << 20), "budget_bits": (1, 64), "damping": (1e-8, 1)}
        check_threads(self.threads)
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {getattr(self, name)}")
        if self.max_loss_increase is not None and not self.max_loss_increase >= 0:
            raise ConfigError(f"max_loss_increase: expected at least 0, got {self.max_loss_increase}")
        if self.max_loss_increase is not None and self.evaluate is None:
            raise ConfigError("evaluate: expected text to measure the loss on, got none; set evaluate=PATH")
        if self.needs_text and self.calibration is None:
            what = "mixed bits" if self.method == "rtn" else self.method
            raise ConfigError(
                f"calibration: expected text for {what}, got none; set calibration=PATH, or method=rtn with 4 or 8 bits"
            )

    @property
    def needs_text(self) -> bool:
        return self.method != "rtn" or self.bits == "mixed"

    @property
    def allowed_increase(self) -> float:
        return LOSS_INCREASE[self.bits] if self.max_loss_increase is None else self.max_loss_increase
