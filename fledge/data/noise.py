"""BART's denoising (Lewis et al. 2019, arXiv 1910.13461, §2.2): five ways to spoil a text that can be combined, and the
target is the text itself. Imports no torch.

Sentences change places first, then tokens are infilled, masked and deleted, then the document turns.
"""

from __future__ import annotations

import numpy as np

from fledge.data.keyed import below, poisson, sample, shuffled, uniforms
from fledge.data.objectives import NoiseConfig
from fledge.data.sentences import SentenceMarks, sentence_bounds


def noised(ids: np.ndarray, mask_id: int, marks: SentenceMarks, config: NoiseConfig, *key: object) -> np.ndarray:
    """The spoilt text, int64, a pure function of the key."""
    dice = uniforms(2, *key, "whether")
    if dice[0] < config.permute:
        ids = permuted(ids, marks, *key, "permute")
    if config.infill:
        starts, lengths = infill_spans(len(ids), config.infill, config.mean_span, *key, "infill")
        ids = infilled(ids, starts, lengths, mask_id)
    if config.mask:
        ids = np.where(uniforms(len(ids), *key, "mask") < config.mask, mask_id, ids)
    if config.delete:
        kept = uniforms(len(ids), *key, "delete") >= config.delete
        ids = ids[kept] if kept.any() else ids[:1]
    if dice[1] < config.rotate:
        ids = np.roll(ids, -int(below(len(ids), 1, *key, "rotate")[0]))
    return ids.astype(np.int64)


def permuted(ids: np.ndarray, marks: SentenceMarks, *key: object) -> np.ndarray:
    """Its sentences in a random order."""
    bounds = sentence_bounds(ids, marks, max(1, len(ids)))
    parts = np.split(ids, bounds[1:-1])
    return np.concatenate([parts[i] for i in shuffled(len(parts), *key)])


def infill_spans(n_tokens: int, rate: float, mean: float, *key: object) -> tuple[np.ndarray, np.ndarray]:
    """Where spans begin, rising, and their lengths, int64 [spans] twice: round(rate · T) tokens in spans of Poisson
    lengths, the last one cut to fit. Kept tokens and spans stand in a random order, so spans may touch."""
    wanted = round(rate * n_tokens)
    if not wanted:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    # exp(-mean) of the lengths are 0, so even with small means twice the expected number, and some, is enough
    drawn = poisson(mean, int(2 * wanted / mean) + 64, *key, "lengths")
    sums = np.cumsum(drawn)
    n_spans = int(np.searchsorted(sums, wanted)) + 1
    lengths = drawn[:n_spans].copy()
    lengths[-1] -= int(sums[n_spans - 1]) - wanted
    n_kept = n_tokens - wanted
    slots = sample(n_kept + n_spans, n_spans, *key, "slots")  # of kept tokens and spans in a row, which are spans
    before = slots - np.arange(n_spans)  # kept tokens before each span
    return before + np.cumsum(lengths) - lengths, lengths


def infilled(ids: np.ndarray, starts: np.ndarray, lengths: np.ndarray, mask_id: int) -> np.ndarray:
    """The text with one mask for each span."""
    kept = np.ones(len(ids), bool)
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        kept[start : start + length] = False
    places = starts - (np.cumsum(lengths) - lengths)  # among the kept tokens
    return np.insert(ids[kept], places, mask_id)
