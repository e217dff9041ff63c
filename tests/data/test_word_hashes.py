"""Words hashed without being cut out: equal words, equal hashes; the words are those of a regular expression."""

from __future__ import annotations

import random
import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import word_hashes as module
from fledge.data.word_hashes import all_kinds, word_hashes

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
texts = st.text(st.sampled_from("abcABC12_ .,-\n\taéßİŁдяא中文かな한글😀'"), max_size=60)


def same_classes(hashes: np.ndarray, words: list[str]) -> bool:
    """Whether two words have one hash exactly where they are one word."""
    assert len(hashes) == len(words)
    by_word: dict[str, int] = {}
    for word, value in zip(words, hashes.tolist(), strict=True):
        if by_word.setdefault(word, value) != value:
            return False
    return len(set(by_word.values())) == len(by_word)


@given(texts)
def test_words_are_those_of_a_regular_expression(text):
    assert same_classes(word_hashes(text), WORD.findall(text.lower()))


@given(texts, st.integers(1, 9))
def test_pieces_change_no_word_that_a_space_ends(text, size):
    before = module.PIECE_CHARACTERS
    module.PIECE_CHARACTERS = 40 + size
    module.power_tables.cache_clear()
    try:
        text = " ".join([text] * 5)
        assert word_hashes(text).tolist() == [int(word_hashes(word)[0]) for word in WORD.findall(text.lower())]
    finally:
        module.PIECE_CHARACTERS = before
        module.power_tables.cache_clear()


def test_ascii_and_other_text_hash_the_same_word_alike():
    assert word_hashes("one two")[1] == word_hashes("zwölf two")[1] == word_hashes("TWO")[0]


def test_a_million_words_have_a_million_hashes():
    draw = random.Random(0)
    words = {"".join(draw.choices("ab", k=draw.randint(1, 40))) for _ in range(200_000)}
    assert len(set(word_hashes(" ".join(words)).tolist())) == len(words)


@pytest.mark.parametrize("code", [0x41, 0x5F, 0x2D, 0x660, 0x2160, 0xB2, 0x1F600, 0x20000, 0x0])
def test_a_character_is_a_letter_where_python_says_so(code):
    assert bool(all_kinds()[code]) == (chr(code).isalnum() or chr(code) == "_"), unicodedata.name(chr(code), "?")


def test_every_character_is_what_python_says():
    wanted = np.fromiter((chr(code).isalnum() for code in range(sys.maxunicode + 1)), bool, sys.maxunicode + 1)
    wanted[ord("_")] = True
    for first, last in module.CJK:
        wanted[first : last + 1] = True
    assert np.array_equal(all_kinds() > 0, wanted)
