"""`repetition`: documents that say the same over and over. Rae et al. 2021 (Gopher, arXiv 2112.11446), A.1.1, table A1.

Shares of characters in n-grams are of the characters in words (fledge/data/words.py): space and marks don't count, and
a character in several n-grams counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from fledge.data.cleaning.config import RepetitionConfig
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.words import WordHashes, ngrams, word_lists

PARAGRAPHS = re.compile(r"\n{2,}")


class Repetition:
    """Drops a document at the first rule that it breaks."""

    def __init__(self, config: RepetitionConfig):
        self.config = config
        self.found: Counter[str] = Counter()
        self.words = WordHashes()

    def __call__(self, document: Document) -> Document | Dropped:
        config, text = self.config, document.text
        for what, parts, most, most_characters in (
            ("paragraphs", PARAGRAPHS.split(text), config.duplicate_paragraphs, config.duplicate_paragraph_characters),
            ("lines", text.split("\n"), config.duplicate_lines, config.duplicate_line_characters),
        ):
            share, of_characters = repeated_parts(parts)
            if share > most or of_characters > most_characters:
                return Dropped(f"repeated {what}")
        hashes, lengths = hashes_and_lengths(text, self.words)
        for n, shares in ngram_shares(hashes, lengths):
            most = config.top_ngrams[n - 2] if n < 5 else config.duplicate_ngrams[n - 5]
            if shares > most:
                return Dropped(f"{'frequent' if n < 5 else 'repeated'} {n}-grams")
        return document


def repeated_parts(parts: list[str]) -> tuple[float, float]:
    """The share of parts (blank ones aside) that stood there before, and the share of characters in them."""
    seen: set[str] = set()
    n, n_repeated, characters, repeated_characters = 0, 0, 0, 0
    for part in parts:
        part = part.strip()
        if not part:
            continue
        n, characters = n + 1, characters + len(part)
        if part in seen:
            n_repeated, repeated_characters = n_repeated + 1, repeated_characters + len(part)
        seen.add(part)
    return (n_repeated / n, repeated_characters / characters) if n else (0.0, 0.0)


def hashes_and_lengths(text: str, known: WordHashes) -> tuple[np.ndarray, np.ndarray]:
    """Hash (uint64) and characters (int64) of each word, in order."""
    hashes, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for words in word_lists(text):
        hashes.append(np.fromiter(map(known.__getitem__, words), np.uint64, len(words)))
        lengths.append(np.fromiter(map(len, words), np.int64, len(words)))
    return np.concatenate(hashes), np.concatenate(lengths)


def ngram_shares(hashes: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, float]]:
    """(n, share of the words' characters): for n of 2 to 4 in the n-gram that covers the most of those that come more
    than once, for n of 5 to 10 in all n-grams that come more than once. Ends where none comes more than once."""
    total, ends = int(lengths.sum()), np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(len(hashes))  # where an n-gram begins whose shorter one came more than once
    for n, grams in ngrams(hashes, range(2, 11)):
        places = places[places < len(grams)]
        places = places[np.argsort(grams[places], kind="stable")]
        own = grams[places]
        starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(own)), bool), own[1:] != own[:-1]]))
        counts = np.diff(np.concatenate([starts, [len(own)]]))
        again = counts > 1
        if not again.any():
            return
        top = int(((ends[places[starts] + n] - ends[places[starts]]) * counts * again).argmax())
        many = np.repeat(again, counts)
        chosen = places[starts[top] : starts[top] + counts[top]] if n < 5 else places[many]
        yield n, int(lengths[covered(chosen, n, len(lengths))].sum()) / total
        places = places[many]


def covered(places: np.ndarray, n: int, length: int) -> np.ndarray:
    """Which words stand in an n-gram that begins at one of `places`, bool [length]."""
    begun, ended = np.bincount(places, minlength=length + 1), np.bincount(places + n, minlength=length + 1)
    return np.cumsum(begun - ended)[:-1] > 0
