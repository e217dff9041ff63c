"""MinHash and locality-sensitive hashing: documents that are nearly the same, found without comparing all pairs.

Broder 1997 ("On the resemblance and containment of documents"): the least hash of two sets is the same with a chance
equal to their Jaccard similarity s. Signatures of b bands of r such hashes share a whole band with chance 1-(1-s^r)^b.
What shares one is compared exactly. A document keeps 8·b bytes, and 8 for where its text stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from fledge.data.cleaning.config import NearDuplicatesConfig
from fledge.data.shingles import SHINGLE_WORDS
from fledge.data.words import MULTIPLIER, SHIFT, WordHashes, shingles, word_hashes
from fledge.errors import ConfigError

BLOCK = 2048  # shingles hashed at a time: 2 MB of hashes
MOST_COMPARED = 64  # documents of one bucket that another is compared with
REMEMBERED_TEXTS = 64
SEED = 20260101


class NearDuplicates:
    """`add` each document's text in order, then ask for `clusters`."""

    def __init__(self, config: NearDuplicatesConfig):
        self.config = config
        self.words = WordHashes()
        self.bands, self.rows = bands_and_rows(config)
        self.multipliers, self.offsets = permutations(self.bands * self.rows)
        self.keys: list[np.ndarray] = []  # uint64 [bands] of each document, empty for one that is too short
        self.compared = 0

    def add(self, text: str) -> None:
        own = self.shingles(text)
        signature = minima(own, self.multipliers, self.offsets) if len(own) else None
        empty = np.zeros(0, np.uint64)
        self.keys.append(empty if signature is None else band_keys(signature.reshape(self.bands, self.rows)))

    def clusters(self, text_of: Callable[[int], str]) -> dict[int, int]:
        """For each document that is a near-duplicate of an earlier one, the first of its cluster: the documents that
        a chain of pairs at or above the threshold joins. `text_of(n)` reads the nth text again."""
        remembered = lru_cache(REMEMBERED_TEXTS)(lambda number: self.shingles(text_of(number)))
        root = Roots(len(self.keys))
        refused: set[tuple[int, int]] = set()
        for members in buckets(self.keys, self.bands):
            for at, later in enumerate(members):
                for earlier in members[max(0, at - MOST_COMPARED) : at]:
                    if root.of(earlier) == root.of(later) or (earlier, later) in refused:
                        continue
                    self.compared += 1
                    if jaccard(remembered(earlier), remembered(later)) >= self.config.threshold:
                        root.join(earlier, later)
                    else:
                        refused.add((earlier, later))
        return {number: root.of(number) for number in range(len(self.keys)) if root.of(number) != number}

    def shingles(self, text: str) -> np.ndarray:
        return shingles(word_hashes(text, self.words), SHINGLE_WORDS)


class Roots:
    """Union-find; the root of a cluster is its first document."""

    def __init__(self, n: int):
        self.parent = np.arange(n)

    def of(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = int(self.parent[number])
        return number

    def join(self, a: int, b: int) -> None:
        first, last = sorted((self.of(a), self.of(b)))
        self.parent[last] = first


def bands_and_rows(config: NearDuplicatesConfig) -> tuple[int, int]:
    """The most rows (fewest vain comparisons) whose bands find a pair at the threshold with chance `recall`."""
    found = [
        (config.permutations // rows, rows)
        for rows in range(1, config.permutations + 1)
        if chance_found(config.threshold, config.permutations // rows, rows) >= config.recall
    ]
    if not found:
        raise ConfigError(
            f"near_duplicates.recall: expected what {config.permutations} permutations give at threshold "
            f"{config.threshold:g}, got {config.recall:g}; raise permutations or lower recall"
        )
    return found[-1]


def chance_found(similarity: float, bands: int, rows: int) -> float:
    """The chance that two documents of a Jaccard similarity share a band: 1-(1-s^r)^b."""
    return 1 - (1 - similarity**rows) ** bands


def permutations(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd multipliers and offsets, uint64 [n]: x·a + b modulo 2^64 is a permutation of the hashes."""
    values = np.random.Generator(np.random.PCG64(SEED)).integers(0, 2**64, (2, n), np.uint64)
    return values[0] | np.uint64(1), values[1]


def minima(hashes: np.ndarray, multipliers: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The MinHash signature: the least of each permutation of the hashes, uint64 [permutations]."""
    least = np.full(len(multipliers), np.uint64(2**64 - 1))
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None] * multipliers
        block += offsets
        np.minimum(least, block.min(axis=0), out=least)
    return least


def band_keys(signature: np.ndarray) -> np.ndarray:
    """One hash for each band of a signature, uint64 [bands] from [bands, rows]."""
    keys = np.zeros(len(signature), np.uint64)
    for row in signature.T:
        keys = (keys + row) * MULTIPLIER
        keys ^= keys >> SHIFT
    return keys


def buckets(keys: list[np.ndarray], bands: int) -> Iterator[list[int]]:
    """The documents that share a band, in order, for every band and value that several have."""
    numbers = np.flatnonzero([len(own) > 0 for own in keys])
    if not len(numbers):
        return
    table = np.stack([keys[number] for number in numbers])
    for band in range(bands):
        order = np.argsort(table[:, band], kind="stable")
        ordered = table[order, band]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        ends = np.concatenate([starts[1:], [len(ordered)]])
        for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            yield numbers[order[start:end]].tolist()


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Shared over all elements of two sorted distinct arrays."""
    place = np.minimum(np.searchsorted(b, a), len(b) - 1)
    shared = int((b[place] == a).sum())
    return shared / (len(a) + len(b) - shared)
