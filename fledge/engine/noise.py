"""What a seed means: Gumbel noise as a pure function of (seed, choice, position, token id). No generator state.

argmax over tokens of log p + Gumbel noise is a sample of p (the Gumbel-max identity; Maddison et al. 2014, arXiv
1411.0030). Because the noise of a token is looked up and not drawn, a request's tokens can't depend on batch mates, on
preemption or on a cache. The hash is the output function of SplitMix64 (Steele, Lea & Flood 2014), a bijection of
64-bit words, over a Weyl sequence: element `token id` of the sequence that (seed, choice, position) keys.
"""

from __future__ import annotations

import numpy as np

from fledge.nn.native.library import library

GOLDEN = 0x9E3779B97F4A7C15
FIRST, SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WORD = (1 << 64) - 1


def mix(word: int) -> int:
    """SplitMix64's output function: a bijection of 64-bit words in which every input bit flips half the output bits."""
    word ^= word >> 30
    word = word * FIRST & WORD
    word ^= word >> 27
    word = word * SECOND & WORD
    return word ^ word >> 31


def sequence_key(seed: int, choice: int) -> int:
    """The 64-bit key of one answer: `seed` is any 64-bit integer, signed or not."""
    return mix((mix((seed & WORD) + GOLDEN & WORD) + choice * GOLDEN) & WORD)


def other_key(key: int, purpose: str) -> int:
    """A key of the same answer for another purpose than its tokens."""
    return mix(key ^ int.from_bytes(purpose.encode().ljust(8, b"\0")[:8], "big"))


def position_key(key: int, position: int) -> int:
    """The key of one position (tokens before it, prompt included) of the answer that `key` names."""
    return mix((key + (position + 1) * GOLDEN) & WORD)


def uniform(key: int, ids: np.ndarray) -> np.ndarray:
    """float64 in (0, 1), one for each token id, on a grid of 2^-53; 0 and 1 themselves never occur."""
    words = ids.astype(np.uint64)
    words *= np.uint64(GOLDEN)
    words += np.uint64(key)
    words ^= words >> np.uint64(30)
    words *= np.uint64(FIRST)
    words ^= words >> np.uint64(27)
    words *= np.uint64(SECOND)
    words ^= words >> np.uint64(31)
    words >>= np.uint64(11)
    values = words.astype(np.float64)
    np.maximum(values, 0.5, out=values)  # 0 would have an infinite logarithm
    values *= 2.0**-53
    return values


def gumbel(key: int, ids: np.ndarray) -> np.ndarray:
    """Standard Gumbel noise, float64, one for each token id: -log(-log u)."""
    values = uniform(key, ids)
    np.log(values, out=values)
    np.negative(values, out=values)
    np.log(values, out=values)
    return np.negative(values, out=values)


def contenders(scores: np.ndarray, best_id: int, temperature: float, key: int) -> np.ndarray:
    """Ids, rising, among which the argmax of (scores - best) / temperature + Gumbel noise certainly is; float32 scores
    [V], `best_id` the largest's. All ids without the compiled kernels, some tens with them."""
    kernels = library()
    if kernels is None:
        return np.arange(len(scores))
    scores, ids = np.ascontiguousarray(scores, np.float32), np.empty(len(scores), np.int64)
    n = kernels.fledge_contenders(scores.ctypes.data, len(scores), best_id, temperature, key, ids.ctypes.data)
    return ids[:n]
