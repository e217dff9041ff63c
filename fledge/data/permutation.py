"""A keyed order of 0..n-1 that is computed place by place: no list is shuffled or kept. Imports no torch."""

from __future__ import annotations

import hashlib
import math

import numpy as np

ROUNDS = 8
MOST_TABULATED = 1 << 20  # up to this size the whole order is worked out once (0.2 s), then only looked up


def keyed_numbers(*key: object, count: int = 1) -> np.ndarray:
    """`count` uint64 numbers that depend on the key alone: SHA-256 in counter mode, the same on every machine."""
    name = "/".join(map(str, key))
    words = [hashlib.sha256(f"{name}#{i}".encode()).digest()[:8] for i in range(count)]
    return np.frombuffer(b"".join(words), "<u8").astype(np.uint64)


class KeyedPermutation:
    """A permutation of 0..size-1 chosen by a key. `at(places)` gives the items at those places.

    A generalised Feistel network (Black & Rogaway 2002, "Ciphers with arbitrary finite domains", §5) on pairs (left,
    right) of Z_a × Z_b with a·b just above `size`: each round adds a keyed hash of one half to the other, so every
    round can be undone and the whole is a permutation; places that land beyond `size` are sent round again.
    """

    def __init__(self, size: int, *key: object):
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self.size = size
        self.a = max(1, math.isqrt(size))
        self.b = -(-size // self.a)
        self.keys = keyed_numbers("order", *key, count=ROUNDS)
        self.table = self.computed(np.arange(size)) if size <= MOST_TABULATED else None

    def at(self, places: np.ndarray) -> np.ndarray:
        """Items at `places`, integers in 0..size-1 [n] -> int64 [n]."""
        return self.computed(places) if self.table is None else self.table[places]

    def computed(self, places: np.ndarray) -> np.ndarray:
        items = self.walk(np.asarray(places).astype(np.uint64))
        outside = np.flatnonzero(items >= self.size)
        while len(outside):  # a·b - size < a, so few go round and hardly any twice
            items[outside] = self.walk(items[outside])
            outside = outside[items[outside] >= self.size]
        return items.astype(np.int64)

    def walk(self, items: np.ndarray) -> np.ndarray:
        a, b = np.uint64(self.a), np.uint64(self.b)
        left: np.ndarray
        right: np.ndarray
        left, right = items // b, items % b
        for number, key in enumerate(self.keys):
            if number % 2 == 0:
                left = (left + mixed(right + key) % a) % a
            else:
                right = (right + mixed(left + key) % b) % b
        return left * b + right


def mixed(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea & Flood 2014): every input bit reaches every output bit. uint64, wraps."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
