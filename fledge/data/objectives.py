"""Configs of the objectives of pre-training: what is hidden from the model, and how. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.errors import ConfigError

Objective = Literal["causal", "masked", "masked+next", "masked+order", "spans", "denoise", "prefix"]


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are masked, and how."""

    rate: float = 0.15
    """Share of the tokens (of the words, with whole_words) that the model must name; special tokens never are."""
    masks: float = 0.8
    """Share of them that the mask takes the place of."""
    randoms: float = 0.1
    """Share of them that a random token takes the place of; the rest stays as it is."""
    whole_words: bool = False
    """Choose words with all of their tokens, where the tokenizer says which tokens begin one."""
    dynamic: bool = True
    """Choose anew in each epoch (RoBERTa); off: an epoch's choice is that of the first (BERT)."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"masking.rate: expected above 0 and below 1, got {self.rate}")
        if min(self.masks, self.randoms) < 0 or self.masks + self.randoms > 1:
            raise ConfigError(
                f"masking: expected masks and randoms of at least 0 that add up to at most 1, got {self.masks} and "
                f"{self.randoms}"
            )


@dataclass(frozen=True)
class PairsConfig:
    """How two segments are put together."""

    changed: float = 0.5
    """Share of the pairs whose second segment is of another document (masked+next) or stands first (masked+order)."""
    short: float = 0.1
    """Share of the pairs that fill only a random part of the row, so that short texts are met too."""

    def __post_init__(self) -> None:
        for name in ("changed", "short"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pairs.{name}: expected 0..1, got {getattr(self, name)}")


@dataclass(frozen=True)
class SpansConfig:
    """Which spans a sentinel takes the place of."""

    rate: float = 0.15
    """Share of the tokens that are taken out."""
    mean_span: float = 3.0
    """Mean length of a span in tokens."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"spans.rate: expected above 0 and below 1, got {self.rate}")
        if self.mean_span < 1:
            raise ConfigError(f"spans.mean_span: expected at least 1, got {self.mean_span}")


@dataclass(frozen=True)
class NoiseConfig:
    """How a text is spoilt. The defaults are those of BART large: infilling and sentences in another order."""

    infill: float = 0.3
    """Share of the tokens in spans that one mask takes the place of; a span of no tokens puts a mask in."""
    mean_span: float = 3.0
    """Mean length of such a span: Poisson's."""
    mask: float = 0.0
    """Share of the tokens that a mask takes the place of, one by one."""
    delete: float = 0.0
    """Share of the tokens that are left out without a trace."""
    permute: float = 1.0
    """Share of the texts whose sentences are put in a random order."""
    rotate: float = 0.0
    """Share of the texts that begin with a random token of theirs and go on in a circle."""

    def __post_init__(self) -> None:
        for name in ("infill", "mask", "delete", "permute", "rotate"):
            most = 1.0 if name in ("permute", "rotate") else 0.9
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"noise.{name}: expected 0..{most}, got {getattr(self, name)}")
        if not 0 < self.mean_span <= 100:
            raise ConfigError(f"noise.mean_span: expected above 0 and at most 100, got {self.mean_span}")


@dataclass(frozen=True)
class InfillConfig:
    """Fill-in-the-middle for causal models."""

    rate: float = 0.0
    """Share of the documents whose middle is moved to the end; the paper takes 0.5 to 0.9."""
    spm: float = 0.5
    """Share of these in the order suffix, prefix, middle; the others are prefix, suffix, middle."""

    def __post_init__(self) -> None:
        for name in ("rate", "spm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"infill.{name}: expected 0..1, got {getattr(self, name)}")
