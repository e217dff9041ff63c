"""Tokens between two neighbours: equal to counting with dictionaries, they sum to one, and a pattern is learned."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.shards import shard_of
from fledge.evals.bigram import Bigram
from fledge.evals.neighbours import Neighbours

VOCAB = 5
documents = st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=15), min_size=1, max_size=6)


def slow_share(pairs: list[tuple[int, int]], frequency: dict[int, float], a: int, b: int) -> float:
    """p(b | a) by Witten and Bell's method C."""
    followers = [y for x, y in pairs if x == a]
    if not followers:
        return frequency[b]
    return (followers.count(b) + len(set(followers)) * frequency[b]) / (len(followers) + len(set(followers)))


def slow_probability(texts: list[list[int]], left: int, token: int, right: int) -> float:
    single = Counter(t for text in texts for t in text)
    frequency = {t: (single[t] + 1) / (sum(single.values()) + VOCAB) for t in range(VOCAB)}
    pairs = [pair for text in texts for pair in zip(text, text[1:], strict=False)]
    mean = slow_share(pairs, frequency, left, token) + slow_share([p[::-1] for p in pairs], frequency, right, token)
    between = [
        x for text in texts for a, x, b in zip(text, text[1:], text[2:], strict=False) if (a, b) == (left, right)
    ]
    if not between:
        return mean / 2
    return (between.count(token) + len(set(between)) * mean / 2) / (len(between) + len(set(between)))


@given(documents)
def test_it_equals_counting_with_dictionaries_and_sums_to_one(texts):
    shard = shard_of(texts)
    model = Neighbours(shard.tokens[:], shard.starts, VOCAB)
    for left in range(VOCAB):
        for right in range(VOCAB):
            every = np.arange(VOCAB)
            found = model.probability(np.full(VOCAB, left), every, np.full(VOCAB, right))
            assert found.sum() == pytest.approx(1)
            assert found == pytest.approx([slow_probability(texts, left, t, right) for t in range(VOCAB)])


def test_both_sides_tell_more_than_one():
    """Each token is told by its two neighbours together and by neither alone."""
    rng = np.random.default_rng(1)
    ends = rng.integers(0, 4, (3000, 2))
    texts = [[int(a), 4 + int(a ^ b), int(b)] for a, b in ends]
    shard = shard_of(texts)
    both = Neighbours(shard.tokens[:], shard.starts, 8)
    left, middle, right = (np.array(column) for column in zip(*texts[:200], strict=True))
    assert both.probability(left, middle, right).min() > 0.9
    assert (both.guess(left, right) == middle).all()
    assert Bigram(shard.tokens[:], shard.starts, 8).probability(left, middle).max() < 0.5  # the control


def test_a_guess_backs_off_to_the_left_neighbour_and_to_frequency():
    shard = shard_of([[0, 1, 2], [0, 1, 3], [4, 4, 4, 4]])
    model = Neighbours(shard.tokens[:], shard.starts, 6)
    assert model.guess(np.array([0, 0, 5]), np.array([2, 0, 5])).tolist() == [1, 1, 4]
