"""What a task head is trained on: which file, and where in a row its parts stand. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError

Task = Literal["sequence", "regression", "token", "span", "choice", "text2text"]
NAMES = {
    "text": ("text", "sentence", "sentence1", "premise", "question1", "content"),
    "pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "score", "category"),
    "source": ("source", "src", "input", "document", "article", "text"),
    "target": ("target", "tgt", "output", "summary", "highlights", "translation"),
}
"""The names by which files call a column, tried in this order where the config says nothing."""


@dataclass(frozen=True)
class TaskDataConfig:
    """Labelled rows: JSON lines (or one array), a table with commas or tabs, CoNLL columns, SQuAD's nesting; each also
    compressed with gzip."""

    path: str = ""
    """Training rows."""
    val: str = ""
    """Held-out rows; empty: a share of the training rows, by seed."""
    val_fraction: float = 0.1
    """Share held out when `val` is empty."""
    text: str = ""
    """Column of the text; a number in a table without a header, from 0. Empty: text, sentence, sentence1, premise…
    Of text2text the source: source, src, input, document…"""
    pair: str = ""
    """Column of a second text; empty: text_pair, sentence2, hypothesis…, where a row has one."""
    label: str = ""
    """Column of the answer; empty: label, labels, score or category. Of text2text the target: target, tgt, output,
    summary…"""
    prefix: str = ""
    """text2text: what stands before every source, as T5 names its task ("translate English to German: ")."""
    header: bool = True
    """Whether the first line of a table names its columns."""
    labels: tuple[str, ...] = ()
    """Names of the labels in their order; empty: those of the training rows, sorted (numbers as numbers)."""
    max_tokens: int = 0
    """Longest row in tokens; 0: the model's context. A longer text loses its end, of two the longer first; a longer
    context of a question is read in windows. Of text2text the longest source."""
    max_target_tokens: int = 0
    """text2text: longest target in tokens; 0: the model's context. A longer one loses its end."""
    stride: int = 128
    """span: tokens that neighbouring windows of a context share."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction: expected a share between 0 and 1, got {self.val_fraction}")
        for name in ("max_tokens", "max_target_tokens", "stride"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name}: expected at least 0, got {getattr(self, name)}")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError("data.labels: expected names that differ, got one twice")
