"""What an encoder–decoder reads and must write, from a segment of text: one function for each objective, of
(ids, key) -> (source, target), int64 each. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from fledge.data.keyed import below
from fledge.data.noise import NoiseConfig, noised
from fledge.data.segments import frame_of
from fledge.data.sentences import sentence_marks
from fledge.data.spans import SpansConfig, noise_mask, sentinel_ids, with_sentinels
from fledge.errors import ConfigError
from fledge.text.tokenizer import Tokenizer

Corruption: TypeAlias = Callable[..., tuple[np.ndarray, np.ndarray]]


def span_corruption(tokenizer: Tokenizer, config: SpansConfig) -> Corruption:
    """T5: spans become sentinels. Segments of two tokens or more; eos ends both sides."""
    sentinels, end = sentinel_ids(tokenizer), end_id(tokenizer)

    def corrupted(ids: np.ndarray, *key: object) -> tuple[np.ndarray, np.ndarray]:
        source, target = with_sentinels(ids, noise_mask(len(ids), config, *key), sentinels)
        return np.append(source, end), np.append(target, end)

    return corrupted


def text_noise(tokenizer: Tokenizer, config: NoiseConfig) -> Corruption:
    """BART: the spoilt text, and the text; both in their frame. Raises ConfigError for a tokenizer without a mask."""
    mask, frame, marks = tokenizer.special.get("mask"), frame_of(tokenizer), sentence_marks(tokenizer)
    if mask is None:
        raise ConfigError("tokenizer: expected a mask token, got none; add <mask> to it")

    def corrupted(ids: np.ndarray, *key: object) -> tuple[np.ndarray, np.ndarray]:
        return frame.around(noised(ids, mask, marks, config, *key)), frame.around(ids)

    return corrupted


def prefix_split(tokenizer: Tokenizer) -> Corruption:
    """Prefix LM (Raffel et al. 2019, §3.1.4): a text is read up to a random place and written from there on."""
    end = end_id(tokenizer)

    def corrupted(ids: np.ndarray, *key: object) -> tuple[np.ndarray, np.ndarray]:
        cut = split_at(len(ids), *key)
        return np.append(ids[:cut], end), np.append(ids[cut:], end)

    return corrupted


def split_at(n_tokens: int, *key: object) -> int:
    """Tokens of the prefix, 1..n-1."""
    return 1 + int(below(n_tokens - 1, 1, *key, "split")[0])


def end_id(tokenizer: Tokenizer) -> int:
    end = tokenizer.special.get("eos", tokenizer.special.get("sep"))
    if end is None:
        raise ConfigError("tokenizer: expected an eos token that ends what is written, got none; use another one")
    return end
