"""Configuration of `tokenizer train` and `tokenizer report`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fledge.errors import ConfigError


@dataclass(frozen=True)
class TokenizerTrainConfig:
    """Train a tokenizer on text."""

    text: Path
    """A text file, a folder of text, a folder written by `data build` (its training split is read), or JSON lines
    with a `text` key."""
    out: Path
    """Folder to write: tokenizer.json, tokenizer_config.json and card.json."""
    kind: Literal["bpe", "characters", "bytes"] = "bpe"
    """bpe: byte-level BPE; characters: one id per character of the text; bytes: the 256 bytes, nothing learned."""
    vocab_size: int = 8192
    """Number of ids in all, the special tokens included; for bpe only."""
    pattern: Literal["gpt2", "llama3", "qwen2"] = "gpt2"
    """Which characters may share a token: the published split pattern of that model; for bpe only."""
    limit_bytes: int = 0
    """Read whole documents up to about this many UTF-8 bytes; 0 reads all."""
    special_tokens: bool | None = None
    """Add <|bos|>, <|eos|>, <|pad|> and the chat roles; without a value: yes, but for characters."""

    def __post_init__(self) -> None:
        if not 1 <= self.vocab_size <= 1 << 20:
            raise ConfigError(f"vocab_size: expected 1..{1 << 20}, got {self.vocab_size}")
        if self.limit_bytes < 0:
            raise ConfigError(f"limit_bytes: expected 0 or more, got {self.limit_bytes}")


@dataclass(frozen=True)
class TokenizerReportConfig:
    """Compare tokenizers on texts: bytes per token, fertility, unused entries, how words are split."""

    tokenizer: str
    """A tokenizer folder or tokenizer.json, or `bytes`; several with commas between them."""
    text: Path
    """What to measure on: a text file, a folder of text, a folder written by `data build`, or JSON lines."""
    split: Literal["train", "val", "all"] = "all"
    """Which documents of a folder written by `data build` to read."""
    words: tuple[str, ...] = ("strawberry",)
    """Words whose pieces are shown."""
    limit_bytes: int = 0
    """Read whole documents up to about this many UTF-8 bytes; 0 reads all."""

    def __post_init__(self) -> None:
        if self.limit_bytes < 0:
            raise ConfigError(f"limit_bytes: expected 0 or more, got {self.limit_bytes}")
