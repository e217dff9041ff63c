"""Words hashed from UTF-8 are those of a regular expression over the text in lower case, and of `word_hashes`."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data import utf8_words, word_hashes
from fledge.data.utf8_words import utf8_word_hashes

CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
CHARACTERS = "abcABC12_ .,-\n\t\0\x7féÉßẞİŁłΣσдДяא中文かな한글“”😀𐐀𐐨𠀀ȺKﬁ'"
texts = st.text(st.sampled_from(CHARACTERS), max_size=60) | st.text(max_size=30)
long_words = st.text(st.sampled_from("abcé "), min_size=60, max_size=300)


def hashes_of(text: str) -> list[int]:
    return utf8_word_hashes([text.encode("utf-8", "surrogatepass")])[0].tolist()


def same_classes(hashes: list[int], words: list[str]) -> bool:
    """Whether two words have one hash exactly where they are one word."""
    assert len(hashes) == len(words)
    pairs = set(zip(hashes, words, strict=True))
    return len(pairs) == len(set(hashes)) == len(set(words))


@given(texts | long_words)
@settings(max_examples=400)
def test_words_are_those_of_a_regular_expression(text):
    assert same_classes(hashes_of(text), WORD.findall(text.lower()))


@given(texts, texts)
def test_a_word_has_one_hash_wherever_it_stands(one, other):
    words = WORD.findall(f"{one} {other}".lower())
    assert same_classes(hashes_of(one) + hashes_of(other), words) or "Σ" in one + other  # whose end is that of the text
    assert hashes_of(f"{one} {other}") == [hashes_of(word)[0] for word in words]


def test_the_control_a_hash_of_the_first_letters_alone_fails():
    assert not same_classes([1, 1], ["abc", "abd"])
    assert not same_classes([1, 2], ["abc", "abc"])


@given(st.lists(texts | long_words, max_size=12), st.integers(10, 400))
def test_texts_hashed_together_are_hashed_as_each_alone(several, size):
    data = [text.encode("utf-8", "surrogatepass") for text in several]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utf8_words, "GROUP_BYTES", size)
        hashes, first = utf8_word_hashes(data)
    assert first[0] == 0 and first[-1] == len(hashes)
    for number, text in enumerate(several):
        assert hashes[first[number] : first[number + 1]].tolist() == hashes_of(text)


@given(st.lists(st.sampled_from(["ab", " ", "É-", "İ", "中", "x" * 9, "\n", "ß"]), max_size=200), st.integers(20, 50))
@settings(max_examples=200)
def test_a_text_is_cut_where_word_hashes_cuts_it(parts, size):
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_hashes, "PIECE_CHARACTERS", size)
        patch.setattr(utf8_words, "PIECE_BYTES", 2 * size)
        word_hashes.power_tables.cache_clear()
        old, new = word_hashes.word_hashes(text).tolist(), hashes_of(text)
    word_hashes.power_tables.cache_clear()
    assert len(old) == len(new)
    assert len(set(zip(old, new, strict=True))) == len(set(old)) == len(set(new))


def test_every_character_is_put_in_lower_case_as_python_does():
    kinds, capitals, small = utf8_words.tables(17)
    small_of, wrong = dict(zip(capitals.tolist(), small.tolist(), strict=True)), []
    for code, kind in enumerate(kinds.tolist()):
        lower = chr(code).lower()
        if kind == utf8_words.OTHER_LENGTH:
            right = lower.lower() == lower  # or there would be no end to it
        elif kind == utf8_words.CAPITAL:
            right = WORD.fullmatch(lower) is not None and lower == chr(small_of[code])
        else:
            right = (WORD.search(lower) is not None) == (kind > 0) and (kind == 0 or lower == chr(code))
        if not right:
            wrong.append(code)
    assert len(kinds) == sys.maxunicode + 1 and not wrong
