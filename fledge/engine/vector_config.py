"""Configuration of the engine of vectors and labels. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fledge.engine.purpose import check_pooling
from fledge.errors import ConfigError


@dataclass(frozen=True)
class VectorConfig:
    """Vectors of texts, or what a task head says of them, in place of text: how texts of many requests share passes."""

    pooling: str = ""
    """Serve the model's states as vectors of length 1, pooled so: cls, max, mean, mean_sqrt_len_tokens, weightedmean or
    lasttoken. Empty: as a sentence-transformers folder says, mean for another encoder; what has a decoder writes text,
    and what has a task head says what that does."""
    batch_tokens: int = 512
    """Tokens of one pass at most, padding counted; a longer text passes alone."""
    max_waiting_tokens: int = 1_000_000
    """Tokens that wait for a pass at most; requests beyond them are refused with 503."""

    def __post_init__(self) -> None:
        check_pooling(self.pooling)
        for name in ("batch_tokens", "max_waiting_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vectors.{name}: expected at least 1, got {getattr(self, name)}")
