"""Random draws that depend on a key alone: no generator state, so any row of any epoch can be drawn at any time.

A key's SHA-256 begins a splitmix64 stream (Steele, Lea & Flood 2014): 2^64 keys, numbers of 64 bits. Imports no torch.
"""

from __future__ import annotations

import math

import numpy as np

from fledge.data.permutation import keyed_numbers, mixed

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step: odd, so a stream repeats only after 2^64 numbers


def numbers(count: int, *key: object) -> np.ndarray:
    """`count` uint64 numbers."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return mixed(keyed_numbers(*key) + steps)


def uniforms(count: int, *key: object) -> np.ndarray:
    """`count` float64 numbers in 0..1, 1 left out."""
    return (numbers(count, *key) >> np.uint64(11)) * 2.0**-53


def below(bound: int, count: int, *key: object) -> np.ndarray:
    """`count` int64 numbers in 0..bound-1."""
    return (uniforms(count, *key) * bound).astype(np.int64)


def shuffled(n: int, *key: object) -> np.ndarray:
    """0..n-1 in a random order, int64."""
    return np.argsort(numbers(n, *key), kind="stable")


def sample(n: int, count: int, *key: object) -> np.ndarray:
    """`count` different ones of 0..n-1, rising, int64."""
    return np.sort(shuffled(n, *key)[:count])


def composition(total: int, parts: int, *key: object) -> np.ndarray:
    """`total` as a sum of `parts` numbers of at least 1, each such sum as likely as any other: int64 [parts]."""
    cuts = sample(total - 1, parts - 1, *key) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def poisson(mean: float, count: int, *key: object) -> np.ndarray:
    """`count` numbers of a Poisson distribution, int64, by inverting its distribution function."""
    most = int(mean + 12 * math.sqrt(mean) + 12)
    n = np.arange(most)
    logs = n * math.log(mean) - mean - np.cumsum(np.log(np.maximum(n, 1)))
    return np.searchsorted(np.cumsum(np.exp(logs)), uniforms(count, *key), "right")
