"""Masked language modelling (Devlin et al. 2018, arXiv 1810.04805, §3.1): some tokens are chosen; of these most become
the mask, some another token, some stay, and the model must say what each was. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fledge.data.keyed import below, uniforms
from fledge.data.objectives import MaskingConfig
from fledge.errors import ConfigError
from fledge.text.tokenizer import Tokenizer

WORD_MARKS = {"bpe": "Ġ", "sentencepiece-bpe": "▁", "unigram": "▁"}
"""What a token that begins a word begins with, by the tokenizer's kind; WordPiece marks the others."""


@dataclass(frozen=True)
class MaskVocabulary:
    """What masking knows of a vocabulary: the mask's id; `special` bool [V], tokens that are never chosen; `ordinary`
    int64, the ids that a random token is drawn from; `continues` bool [V], tokens within a word, or None."""

    mask_id: int
    special: np.ndarray
    ordinary: np.ndarray
    continues: np.ndarray | None = None


def mask_vocabulary(tokenizer: Tokenizer, whole_words: bool = False) -> MaskVocabulary:
    """Raises ConfigError for a tokenizer without a mask, or, for `whole_words`, without marks of words."""
    mask = tokenizer.special.get("mask")
    if mask is None:
        raise ConfigError(
            "tokenizer: expected a mask token ([MASK] or <mask>), got none; train one with tokenizer.kind=wordpiece"
        )
    unknown = tokenizer.special.get("unk")
    special = np.array([tokenizer.is_special(number) for number in range(tokenizer.vocab_size)])
    # an unknown word is text: it can't be told, but neither is it control
    ordinary = np.flatnonzero(~special & np.array([token is not None for token in tokenizer.file.tokens]))
    special[[mask, *([] if unknown is None else [unknown])]] = True
    return MaskVocabulary(mask, special, ordinary, continuations(tokenizer) if whole_words else None)


def continuations(tokenizer: Tokenizer) -> np.ndarray:
    """Whether each token goes on with the word of the token before it: bool [V]. Raises ConfigError where no token
    says so. Punctuation that follows without a space belongs to the word in kinds that mark spaces."""
    tokens = [token or "" for token in tokenizer.file.tokens]
    if tokenizer.kind == "wordpiece":
        inside = [token.startswith("##") for token in tokens]
    elif mark := WORD_MARKS.get(tokenizer.kind):
        breaks = (mark, "Ċ", "ĉ", "č", "\n", "\t", "\r")
        inside = [bool(token) and not token.startswith(breaks) for token in tokens]
        if not any(token.startswith(mark) and len(token) > 1 for token in tokens):
            inside = []
    else:
        inside = []
    if not inside:
        raise ConfigError(
            f"masking.whole_words: expected a tokenizer that marks words, got one of kind {tokenizer.kind} without "
            "such marks; set masking.whole_words=false"
        )
    return np.array(inside) & ~np.array([tokenizer.is_special(number) for number in range(len(tokens))])


def masked(ids: np.ndarray, vocabulary: MaskVocabulary, config: MaskingConfig, *key: object) -> tuple:
    """The row with its masks, int64 [T], and which of its tokens the model must name, bool [T]: a pure function of the
    key. Each token, or each word, is chosen by itself, so their number varies; where none is, one is drawn."""
    chosen = chosen_tokens(ids, vocabulary, config.rate, *key)
    inputs = ids.astype(np.int64)
    fates = uniforms(len(ids), *key, "fate")
    inputs[chosen & (fates < config.masks)] = vocabulary.mask_id
    swapped = chosen & (fates >= config.masks) & (fates < config.masks + config.randoms)
    inputs[swapped] = vocabulary.ordinary[below(len(vocabulary.ordinary), int(swapped.sum()), *key, "token")]
    return inputs, chosen


def chosen_tokens(ids: np.ndarray, vocabulary: MaskVocabulary, rate: float, *key: object) -> np.ndarray:
    allowed = ~vocabulary.special[ids]
    words = words_of(ids, vocabulary)
    draws = uniforms(len(ids), *key, "choice")[words]  # one draw a word: that of its number
    chosen = allowed & (draws < rate)
    if not chosen.any() and allowed.any():
        chosen = allowed & (draws == draws[allowed].min())
    return chosen


def words_of(ids: np.ndarray, vocabulary: MaskVocabulary) -> np.ndarray:
    """The number of each token's word in its row, int64 [T]; without marks of words each token is one. A special token
    ends a word."""
    if vocabulary.continues is None:
        return np.arange(len(ids))
    begins = ~vocabulary.continues[ids] | vocabulary.special[ids]
    begins[1:] |= vocabulary.special[ids[:-1]]
    begins[:1] = True
    return np.cumsum(begins) - 1
