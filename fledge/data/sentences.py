"""Where sentences end, told by tokens alone: a shard holds no text. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.text.tokenizer import Tokenizer

ENDS = (".", "!", "?", "…", "。", "！", "？")
CLOSERS = frozenset("\"'”’»)]）」』")


@dataclass(frozen=True)
class SentenceMarks:
    """Of each token of a vocabulary, bool [V]: it `ends` a sentence; it `closes` one and still belongs to it."""

    ends: np.ndarray
    closes: np.ndarray


def sentence_marks(tokenizer: Tokenizer) -> SentenceMarks:
    """A sentence ends with . ! ? … (and their wide forms), with one closing quote or bracket after it, and with a new
    line. "Mr." ends one too: what comes of it is a segment, not a parse."""
    ends, closes = np.zeros(tokenizer.vocab_size, bool), np.zeros(tokenizer.vocab_size, bool)
    for number, token in enumerate(tokenizer.file.tokens):
        if token is None or tokenizer.is_special(number):
            continue
        text = tokenizer.token_bytes(number).decode(errors="replace")
        bare = text.strip()
        ends[number] = "\n" in text or bare.rstrip("".join(CLOSERS)).endswith(ENDS)
        closes[number] = bool(bare) and set(bare) <= CLOSERS
    return SentenceMarks(ends, closes)


def sentence_bounds(ids: np.ndarray, marks: SentenceMarks, longest: int) -> np.ndarray:
    """Where the sentences of a document begin, and its end: int64, from 0 to n. Longer ones than `longest` tokens are
    cut into pieces of equal length."""
    ends, closes = marks.ends[ids], marks.closes[ids]
    after = np.zeros_like(ends)
    after[1:] = closes[1:] & ends[:-1]
    followed = np.append(after[1:], False)
    bounds = np.flatnonzero((ends | after) & ~followed) + 1
    bounds = np.unique(np.concatenate([[0], bounds, [len(ids)]]))
    long = np.flatnonzero(np.diff(bounds) > longest)
    more = [
        np.linspace(bounds[i], bounds[i + 1], -(-int(bounds[i + 1] - bounds[i]) // longest) + 1).astype(np.int64)
        for i in long
    ]
    return np.unique(np.concatenate([bounds, *more]))
