"""Length, repetition, symbols and boilerplate, against counting by hand in plain Python."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.cleaning.boilerplate import Boilerplate, LineCounts, line_hash
from fledge.data.cleaning.config import BoilerplateConfig, LengthConfig, RepetitionConfig, SymbolsConfig
from fledge.data.cleaning.length import Length
from fledge.data.cleaning.repetition import Repetition, hashes_and_lengths, ngram_shares, repeated_parts
from fledge.data.cleaning.step import Dropped
from fledge.data.cleaning.symbols import Symbols
from fledge.data.document import Document
from fledge.data.words import WordHashes
from tests.data.folders import essay

PROSE = "The ship left the harbour at dawn, and nobody that we knew had come to see it go with us. "


def outcome(step, text: str) -> str:
    left = step(Document("a", text))
    return left.reason if isinstance(left, Dropped) else "kept"


def shares_by_hand(words: list[str]) -> dict[int, float]:
    """Gopher's shares of characters in the top 2- to 4-gram and in repeated 5- to 10-grams."""
    total = sum(map(len, words))
    found = {}
    for n in range(2, 11):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        counts = Counter(grams)
        repeated = {gram for gram, count in counts.items() if count > 1}
        if not repeated:
            break

        def share(chosen, grams=grams, n=n):
            inside = {place + k for place, gram in enumerate(grams) if gram in chosen for k in range(n)}
            return sum(len(words[place]) for place in inside) / total

        if n < 5:
            most = max(counts[gram] * sum(map(len, gram)) for gram in repeated)
            tops = [g for g in repeated if counts[g] * sum(map(len, g)) == most]
            found[n] = {round(share({top}), 9) for top in tops}
        else:
            found[n] = {round(share(repeated), 9)}
    return found


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "dd"]), min_size=1, max_size=40))
def test_shares_of_ngrams_equal_counting_by_hand(words):
    hashes, lengths = hashes_and_lengths(" ".join(words), WordHashes())
    by_hand = shares_by_hand(words)
    found = dict(ngram_shares(hashes, lengths))
    assert found.keys() == by_hand.keys()
    assert all(round(found[n], 9) in by_hand[n] for n in found)


def test_repeated_parts_are_counted_after_their_first():
    assert repeated_parts(["ab", " ab ", "", "cdef"]) == (1 / 3, 2 / 8)
    assert repeated_parts(["", " "]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (essay(1), "kept"),
        ("\n".join([essay(1, 9), essay(2, 9), essay(1, 9), essay(1, 9)]), "repeated lines"),
        ("\n\n".join([essay(n, 9) for n in (1, 2, 1, 1)]), "repeated paragraphs"),
        (" ".join(f"same words {essay(n, 2)}" for n in range(40)), "frequent 2-grams"),
        (" ".join(f"{essay(n % 20, 12)} {essay(100 + n, 9)}" for n in range(40)), "repeated 5-grams"),
    ],
)
def test_repetition_names_the_rule_that_is_broken(text, reason):
    assert outcome(Repetition(RepetitionConfig()), text) == reason


def test_a_threshold_that_is_raised_lets_the_document_pass():
    text = " ".join(f"same words {essay(n, 2)}" for n in range(40))
    assert outcome(Repetition(RepetitionConfig(top_ngrams=(1.0, 1.0, 1.0))), text) == "kept"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE * 5, "kept"),
        ("# one # two # three the and of", "hash signs or ellipses"),
        ("- the one\n- and two\n- of three", "lines with bullets"),
        ("\n".join([f"{PROSE} ..."] * 2 + [PROSE]), "lines that end in an ellipsis"),
        ("the and 12 34 56 78 90 11 12 13", "words without letters"),
        ("a b c d e f the and of to", "words too short or too long"),
        ("incomprehensibilities " * 9, "words too short or too long"),
        ("nothing here belongs among common English words", "too few stop words"),
        ("床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。", "kept"),
        ("ภาษาไทยเขียนโดยไม่มีช่องว่างระหว่างคำ", "kept"),
        ("😀 😀 😀", "words without letters"),
    ],
)
def test_symbols_name_the_rule_that_is_broken(text, reason):
    assert outcome(Symbols(SymbolsConfig()), text) == reason


def test_prose_of_another_language_passes_without_stop_words():
    text = "Das Schiff verließ den Hafen im Morgengrauen, niemand kam."
    assert outcome(Symbols(SymbolsConfig()), text) == "too few stop words"
    assert outcome(Symbols(SymbolsConfig(least_stop_words=0)), text) == "kept"


def test_length_counts_words_and_characters():
    config = LengthConfig(least_words=3, most_words=5, least_characters=8, most_characters=30)
    cases = {
        "a b c": "fewer than 8",
        "aaaaa bbbbb": "fewer than 3 words",
        "ab cd ef": "kept",
        "a " * 6: "more than 5 w",
    }
    for text, reason in {**cases, "x" * 31: "more than 30"}.items():
        assert outcome(Length(config), text).startswith(reason)
    assert outcome(Length(LengthConfig(least_words=4, most_words=0)), "床前明月") == "kept"


def boilerplate(texts: list[str], **options) -> list[str]:
    step = Boilerplate(BoilerplateConfig(**options))
    for text in texts:
        step.observe(Document("a", text))
    step.settle()
    return [left.reason if isinstance(left := step(Document("a", t)), Dropped) else left.text for t in texts]


def test_lines_that_many_documents_share_are_taken_out():
    body = [f"{essay(n, 8)}\nshort\n{essay(100 + n, 8)}" for n in range(12)]
    notice = "This site keeps small files on your computer."
    texts = [f"Home  | About\n\n{text}\n{notice}\n{essay(200 + n, 8)}\nTop" for n, text in enumerate(body)]
    left = boilerplate(texts)
    assert left == [f"{text}\n{essay(200 + n, 8)}" for n, text in enumerate(body)]
    assert boilerplate(texts[:9]) == texts[:9]  # nine documents are not many: the control


def test_a_notice_in_two_documents_is_enough_and_words_alone_are_not():
    texts = [
        "Read our Privacy Policy here.\nmore text",
        "Read our  Privacy Policy here.\nother",
        "My privacy policy is mine\nx",
    ]
    assert boilerplate(texts) == ["more text", "other", texts[2]]


def test_a_document_of_nothing_else_is_dropped():
    assert boilerplate(["menu\nlogin"] * 10) == ["nothing but lines that many documents share"] * 10


@given(st.lists(st.lists(st.sampled_from(["a", "b ", " b", "", "c d"]), max_size=6), max_size=12))
def test_lines_are_counted_once_a_document(documents):
    counts = LineCounts()
    for number, lines in enumerate(documents):
        counts.add("\n".join(lines))
        if number % 3 == 0:
            counts.merge()
    counts.merge()
    by_hand = Counter(
        line for lines in documents for line in {re.sub(r"\s+", " ", raw).strip() for raw in lines} - {""}
    )
    for least in (1, 2, 5):
        assert counts.at_least(least) == {line_hash(line) for line, n in by_hand.items() if n >= least}
