"""The bigram model equals counting with dictionaries, and its probabilities sum to one."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.shards import shard_of
from fledge.evals.bigram import Bigram

VOCAB = 6
documents = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=15), min_size=1, max_size=6)


def slow_bits(texts: list[list[int]], ids: list[int]) -> float:
    single = Counter(token for text in texts for token in text)
    pairs = Counter(pair for text in texts for pair in zip(text, text[1:], strict=False))
    bits = 0.0
    for a, b in zip(ids, ids[1:], strict=False):
        frequency = (single[b] + 1) / (sum(single.values()) + VOCAB)
        followers = len({pair for pair in pairs if pair[0] == a})
        met = sum(count for pair, count in pairs.items() if pair[0] == a)
        bits -= math.log2((pairs[a, b] + followers * frequency) / (met + followers) if met else frequency)
    return bits


@given(documents, st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
def test_bits_equal_counting_with_dictionaries(texts, ids):
    shard = shard_of(texts)
    assert Bigram(shard.tokens, shard.starts, VOCAB).bits(ids) == pytest.approx(slow_bits(texts, ids), abs=1e-9)


@given(documents)
def test_the_followers_of_every_token_have_probability_one_together(texts):
    shard = shard_of(texts)
    bigram = Bigram(shard.tokens, shard.starts, VOCAB)
    for a in range(VOCAB):
        assert sum(2 ** -bigram.bits([a, b]) for b in range(VOCAB)) == pytest.approx(1)
    assert sum(2 ** -bigram.first_bits(a) for a in range(VOCAB)) == pytest.approx(1)


def test_pairs_across_documents_are_not_counted():
    apart = shard_of([[0, 1], [2, 3]])
    together = shard_of([[0, 1, 2, 3]])
    bits = [Bigram(shard.tokens, shard.starts, VOCAB).bits([1, 2]) for shard in (apart, together)]
    assert bits[0] > bits[1] + 0.5


def test_a_pattern_is_learned():
    tokens = np.array([0, 1, 2] * 500, np.uint16)
    assert Bigram(tokens, np.array([0, 1500]), 3).bits([0, 1, 2] * 10) < 0.1
