"""Config of `fledge attention`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.errors import ConfigError


@dataclass(frozen=True)
class AttentionConfig:
    """Whose attention to look at, over what, and where to write the page."""

    model: str
    """Model folder or run folder."""
    text: str
    """The text that the model reads; an encoder-decoder's encoder."""
    target: str | None = None
    """What an encoder-decoder's decoder has said so far; unset: nothing but its start."""
    out: Path = Path("attention.html")
    """The page to write: a file ending in .html."""
    max_tokens: int = 256
    """Longer texts are refused: a page holds every weight, which is layers x heads x tokens x tokens."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens: expected at least 1, got {self.max_tokens}")
        if self.out.suffix != ".html":
            raise ConfigError(f"out: expected a file ending in .html, got {self.out}")
