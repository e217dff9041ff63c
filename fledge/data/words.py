"""Words and their n-grams as 64-bit hashes: what near-duplicates, repetition and contamination compare.

A word is a run of letters, digits and underscores; a Chinese, Japanese or Korean character is a word of its own. Case
doesn't count. A hash depends on the words alone, so documents read at any time can be compared. Equal hashes of
different n-grams are the only error: about n²/2^65 for n of them, one in a million for six million.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from hashlib import blake2b

import numpy as np

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+")
SPACE = re.compile(r"\s")
MULTIPLIER = np.uint64(0x5851F42D4C957F2D)
SHIFT = np.uint64(29)
PIECE_CHARACTERS = 1 << 20  # words are listed for this much text at a time
MOST_REMEMBERED = 1 << 20  # words; what is forgotten is only hashed again
LONGEST_REMEMBERED = 64  # characters


class WordHashes(dict[str, int]):
    """Word -> its hash, remembered for the words that come often."""

    def __missing__(self, word: str) -> int:
        value = hash_of(word.lower())
        if len(word) <= LONGEST_REMEMBERED:
            if len(self) >= MOST_REMEMBERED:
                self.clear()
            self[word] = value
        return value


def hash_of(text: str) -> int:
    """A 64-bit hash of a text, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def pieces(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of stretches of about a million characters that end at a space: no list of words is ever of a whole
    book, and no word is cut."""
    start = 0
    while start < len(text):
        space = SPACE.search(text, start + PIECE_CHARACTERS)
        end = space.start() if space else len(text)
        yield start, end
        start = end


def word_lists(text: str) -> Iterator[list[str]]:
    """The words of a text in order, a list for each stretch of it."""
    for start, end in pieces(text):
        yield WORD.findall(text, start, end)


def remembered_hashes(text: str, known: WordHashes) -> np.ndarray:
    """The hash of each word of `word_lists`, in order, uint64 [words]: for steps that look at the words themselves;
    `word_hashes.word_hashes` makes no list of them and is ten times as fast."""
    lists = (np.fromiter(map(known.__getitem__, words), np.uint64, len(words)) for words in word_lists(text))
    return np.concatenate([np.zeros(0, np.uint64), *lists])


def ngrams(words: np.ndarray, sizes: Collection[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(n, the hash of each n-gram by the place of its first word, uint64 [words - n + 1]) for each of `sizes` that the
    text is long enough for, in rising order."""
    mixed = np.zeros(len(words), np.uint64)
    for n in range(1, max(sizes) + 1):
        if n > len(words):
            return
        mixed = (mixed[: len(words) - n + 1] + words[n - 1 :]) * MULTIPLIER  # wraps around: arithmetic modulo 2^64
        mixed ^= mixed >> SHIFT
        if n in sizes:
            yield n, mixed


def ngrams_at(words: np.ndarray, starts: np.ndarray, n: int) -> np.ndarray:
    """The hashes of `ngrams` for the n-grams from `starts` on alone, uint64."""
    mixed = np.zeros(len(starts), np.uint64)
    for place in range(n):
        mixed = (mixed + words[starts + place]) * MULTIPLIER
        mixed ^= mixed >> SHIFT
    return mixed


def shingles(words: np.ndarray, n: int) -> np.ndarray:
    """Sorted distinct hashes of the n-grams, uint64."""
    return distinct(next((mixed for _, mixed in ngrams(words, (n,))), np.zeros(0, np.uint64)))


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted distinct values. np.unique's hash table takes a hundred times longer on such hashes (numpy 2.4)."""
    values = np.sort(values)
    return values[np.concatenate([np.ones(min(1, len(values)), bool), values[1:] != values[:-1]])]
