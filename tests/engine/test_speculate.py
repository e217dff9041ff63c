"""Guesses at next tokens, beside a search through the whole document."""

from __future__ import annotations

import random

from fledge.engine.speculate import PromptLookup


def searched(ids, n, longest=4, shortest=2):
    """The tokens behind the latest earlier place where the most of the last tokens stand."""
    for length in range(longest, shortest - 1, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                return ids[end : end + n]
    return []


def test_a_guess_is_what_followed_the_same_tokens_last():
    lookup = PromptLookup([1, 2, 3, 9, 1, 2, 3, 8, 5, 1, 2, 3])
    assert lookup.guess(3) == [8, 5, 1]
    assert lookup.guess(1) == [8]
    lookup.add(7)
    assert lookup.guess(3) == []


def test_guesses_are_those_of_a_search():
    chance, found = random.Random(1), 0
    for _ in range(200):
        ids = [chance.randrange(4) for _ in range(chance.randrange(40))]
        lookup = PromptLookup(ids)
        for _ in range(10):
            assert lookup.guess(5) == searched(lookup.ids, 5)
            found += bool(lookup.guess(5))
            lookup.add(chance.randrange(4))
    assert found > 500  # the control: there was something to find
