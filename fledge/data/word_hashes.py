"""The words of a text as 64-bit hashes, by numpy alone: no word is ever made a string.

A word is a run of letters, digits and underscores; a Chinese, Japanese or Korean character is a word of its own. A
word's hash is the polynomial of its mixed characters modulo 2^64, taken from running sums over the whole text: the sum
up to its end less that up to its beginning, divided by the power at its beginning (odd, so it has an inverse).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache

import numpy as np

PIECE_CHARACTERS = 1 << 15  # whose arrays fit a cache
BASE = 0x9E3779B97F4A7C15
MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
HALF = np.uint64(32)
CJK = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7AF))
LETTER, CHARACTER = 1, 2  # what a code point is: part of a word, a word of its own; else 0


def word_hashes(text: str) -> np.ndarray:
    """The hash of every word of the text in lower case, in their order, uint64 [n]."""
    found = [hashes_of_piece(piece) for piece in pieces(text.lower())]
    return found[0] if len(found) == 1 else np.concatenate([np.zeros(0, np.uint64), *found])


def pieces(text: str) -> Iterator[str]:
    """The text in pieces that end at a space; one without any is cut where it is."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind(" ", start, start + PIECE_CHARACTERS) + 1
        end = end if end > start else start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def hashes_of_piece(text: str) -> np.ndarray:
    if text.isascii():
        codes = np.frombuffer(text.encode("ascii"), np.uint8)
        kinds, mixed = ascii_kinds()[codes], ascii_mixed()[codes]
    else:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        kinds, mixed = all_kinds()[codes], mix(codes)
    in_word = np.zeros(len(codes) + 2, bool)
    in_word[1:-1] = kinds > 0
    borders = in_word[1:] != in_word[:-1]
    if (kinds == CHARACTER).any():
        alone = np.zeros(len(codes) + 2, bool)
        alone[1:-1] = kinds == CHARACTER
        borders |= alone[1:] | alone[:-1]
    starts = np.flatnonzero(borders & in_word[1:])
    ends = np.flatnonzero(borders & in_word[:-1])
    powers, inverses = power_tables()
    mixed *= powers[: len(codes)]
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(mixed, out=sums[1:])
    return (sums[ends] - sums[starts]) * inverses[starts]


def mix(codes: np.ndarray) -> np.ndarray:
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
    return (mixed ^ (mixed >> HALF)) * MULTIPLIER


@cache
def power_tables() -> tuple[np.ndarray, np.ndarray]:
    """BASE^i and BASE^-i modulo 2^64 for the places i of a piece."""
    tables = []
    for base in (BASE, pow(BASE, -1, 1 << 64)):
        table = np.full(PIECE_CHARACTERS + 1, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


@cache
def all_kinds(n: int = sys.maxunicode + 1) -> np.ndarray:
    """What each of the first `n` code points is, uint8 [n]."""
    characters = np.arange(n, dtype=np.uint32).view("U1")
    kinds = np.char.isalnum(characters).astype(np.uint8)
    kinds[ord("_")] = LETTER
    for first, last in CJK:
        kinds[first : last + 1] = CHARACTER
    return kinds


@cache
def ascii_kinds() -> np.ndarray:
    return np.array([chr(code).isalnum() or chr(code) == "_" for code in range(128)], np.uint8)


@cache
def ascii_mixed() -> np.ndarray:
    return mix(np.arange(128))
