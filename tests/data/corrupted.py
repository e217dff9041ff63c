"""Small tokenizers and shards for the tests of corrupted objectives."""

from __future__ import annotations

from functools import cache

import numpy as np

from fledge.data.shards import Shard, shard_of
from fledge.text.learners import train_wordpiece
from fledge.text.tokenizer import Tokenizer

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
VERBS = ("watched", "painted", "remembered", "followed", "questioned", "carried")
THINGS = ("the lighthouse", "a wandering dog", "the unfinished letter", "an old bicycle", "seventeen candles")


def story(number: int, sentences: int) -> str:
    """Sentences that depend on the number alone."""
    draw = np.random.default_rng(number)
    return " ".join(
        f"{NAMES[draw.integers(8)]} {VERBS[draw.integers(6)]} {THINGS[draw.integers(5)]}." for _ in range(sentences)
    )


@cache
def wordpiece() -> Tokenizer:
    marks = 'the dog said: "stop!" and why? "who (anna)?" '
    return train_wordpiece([marks * 3 + story(n, 40) for n in range(20)], 130, lowercase=True)


def stories(n: int, sentences: int = 30, tokenizer: Tokenizer | None = None) -> Shard:
    """A shard of `n` stories, as `data build` would store them for a tokenizer without bos and eos."""
    tokenizer = tokenizer or wordpiece()
    return shard_of([tokenizer.encode(story(number, sentences)) for number in range(n)], "train")


def chi_square(counts: np.ndarray, shares: np.ndarray) -> float:
    """Pearson's statistic of `counts` against the expected `shares`."""
    expected = counts.sum() * np.asarray(shares)
    return float(((counts - expected) ** 2 / expected).sum())


def plain_documents(n: int, sentences: int) -> Shard:
    """Documents that are told by their tokens: document d is sentences of token 60 + d and a full stop."""
    stop = wordpiece().id_of(".")
    return shard_of([([60 + d] * (5 + d % 3) + [stop]) * sentences for d in range(n)], "train")
