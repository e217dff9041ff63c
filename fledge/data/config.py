"""Configuration of `data build` and `data qa`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fledge.config import check_threads
from fledge.data.cleaning.config import CleanConfig
from fledge.errors import ConfigError
from fledge.text.config import ReadingConfig

PYTHON = "python"  # the source that every Python installation carries


@dataclass(frozen=True)
class BuildConfig:
    """Gather text, hold whole documents out, drop duplicates, tokenise into shards."""

    out: Path
    """Folder to write: corpus.jsonl, documents.jsonl, card.json and, with a tokenizer, the shards."""
    source: str | tuple[str, ...] = PYTHON
    """`python` (help topics and standard library of this installation), or a folder or file of text, or an address such
    as s3://bucket/folder (fsspec); several are read one after the other."""
    tokenizer: str | None = None
    """Folder or tokenizer.json to tokenise with, `characters` or `bytes`; without it the corpus alone is written."""
    val_fraction: float = 0.1
    """Share of each document's characters, from its end, held out where there are too few to hold out whole ones."""
    minimum_eval_bytes: int = 4096
    """Held-out documents smaller than this (UTF-8 bytes) are neither trained on nor evaluated on."""
    near_duplicate: float = 0.3
    """Held-out documents with at least this share of their five-word sequences in the training text are dropped."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """Steps that clean the text before it is held out and written, and their options."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)
    threads: int = 0
    """Threads that compare and tokenise; 0: one for each core. The result is the same with any number."""
    licence: str = ""
    """Under which licence the text stands; a line in the folder's README.md."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("source: expected at least one, got none; name a folder, a file or python")
        check_threads(self.threads)
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"val_fraction: expected at least 0 and below 1, got {self.val_fraction}")
        if not 0 < self.near_duplicate <= 1:
            raise ConfigError(f"near_duplicate: expected above 0 and at most 1, got {self.near_duplicate}")
        if self.minimum_eval_bytes < 0:
            raise ConfigError(f"minimum_eval_bytes: expected 0 or more, got {self.minimum_eval_bytes}")

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources in their order."""
        return (self.source,) if isinstance(self.source, str) else self.source


@dataclass(frozen=True)
class QaConfig:
    """Make question/answer conversations from signatures and docstrings (without any Python: from the text itself)."""

    out: Path
    """Folder to write: train.jsonl, val.jsonl and card.json."""
    source: str = PYTHON
    """`python` (the standard library of this installation), or a folder or file of text."""
    max_conversations: int = 6000
    """Most conversations to keep in train.jsonl; which ones is decided by their hash, not by their order."""
    max_answer_characters: int = 300
    """Answers end at the last whole sentence within this length."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        if self.max_conversations < 1:
            raise ConfigError(f"max_conversations: expected at least 1, got {self.max_conversations}")
        if self.max_answer_characters < 40:
            raise ConfigError(f"max_answer_characters: expected at least 40, got {self.max_answer_characters}")


@dataclass(frozen=True)
class StatsConfig:
    """Count what a dataset, a corpus or a source holds."""

    path: str
    """A folder written by `data build`, or any source that it reads."""
    tokenizer: str | None = None
    """For a source: `bytes` or the tokenizer to count tokens with. A dataset brings its own."""
    top: int = 20
    """How many of the most frequent tokens are shown."""
    card: bool = True
    """Put the figures into the folder's datacard.md too."""
    reading: ReadingConfig = field(default_factory=ReadingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 10_000:
            raise ConfigError(f"top: expected 0..10000, got {self.top}")
