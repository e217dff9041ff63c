"""Configuration of `evaluate`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.config import check_threads
from fledge.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig:
    """Bits per byte on held-out text, beside gzip, xz and a bigram; held-out questions."""

    model: Path
    """Model folder or run folder."""
    text: Path | None = None
    """The path of a file or folder of text, or of a folder written by `data build` (its held-out documents)."""
    compare: Path | None = None
    """Another model, the one before tuning: the same figures for it, and the change."""
    questions: Path | None = None
    """Conversations (JSON lines): the last answer of each is predicted and generated."""
    limit_questions: int = 100
    """Most questions to ask, from the top of the file; 0 asks all."""
    max_answer_tokens: int = 96
    """Most tokens of a generated answer."""
    stride: int = 0
    """New tokens in each window of a document longer than the context; 0 is half of the context."""
    threads: int = 0
    """CPU threads; 0 is one for each core."""
    device: str = "cpu"
    """cpu, cuda, mps or auto."""
    seed: int = 0
    """Decides the resamples of the intervals."""
    out: Path | None = None
    """File to write the result to, as JSON."""

    def __post_init__(self) -> None:
        if self.text is None and self.questions is None:
            raise ConfigError("text: expected text or questions to evaluate on, found neither; set text=FILE")
        low = {"limit_questions": 0, "max_answer_tokens": 1, "stride": 0, "seed": 0}
        check_threads(self.threads)
        for name, least in low.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: expected at least {least}, got {getattr(self, name)}")
