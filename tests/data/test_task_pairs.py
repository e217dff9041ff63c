"""Pairs that are too long keep what `tokenizers` keeps of them."""

from __future__ import annotations

import itertools

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from fledge.data.task_framing import kept_of


def test_the_two_texts_of_a_pair_are_cut_as_longest_first_cuts_them():
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = Whitespace()
    seen = set()
    for a, b in itertools.product(range(1, 8), repeat=2):
        for most in range(1, a + b):
            words.enable_truncation(most, strategy="longest_first")
            told = words.encode(" ".join("a" * a), " ".join("b" * b)).type_ids
            expected = (told.count(0), told.count(1))
            got = kept_of(a, b, a + b - most)
            assert got == expected, (a, b, most)
            seen.add(got == kept_of(b, a, a + b - most)[::-1])
    assert seen == {True, False}  # the control: of two equal lengths the order matters
