"""Unigram's best path in SentencePiece's own arithmetic, for texts where the last bit decides.

SentencePiece adds log-probabilities in single precision, the `tokenizers` library in double. In a run such as `.......`
many cuts have the same pieces in another order and so the same sum, but for rounding; which one wins then is a matter
of the arithmetic. Texts with such runs are cut here, slowly and exactly; all others by the library.
Source: google/sentencepiece, src/unigram_model.cc, `Model::EncodeOptimized`.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable

UNKNOWN_PENALTY = 10.0
RUN = re.compile(r"(.)\1\1|(.{2,8}?)\2\2", re.DOTALL)
MAX_CHARACTERS = 1 << 16  # of a text: beyond, the library cuts it whatever runs there are


def needs_exact(text: str) -> bool:
    """Whether equal sums are likely in this text, and it is short enough to be cut here."""
    return len(text) <= MAX_CHARACTERS and RUN.search(text) is not None


class ExactUnigram:
    """Cuts prepared texts. `pieces`: (text, score, id) of those that a text may contain; `scores`: those of all normal
    pieces, of which the least prices an unknown character."""

    def __init__(self, pieces: Iterable[tuple[str, float, int]], least_score: float):
        self.table = {text: (score, number) for text, score, number in pieces}
        self.unknown_score = single(least_score - UNKNOWN_PENALTY)
        self.longest: dict[str, int] = {}  # by first character
        for text in self.table:
            self.longest[text[0]] = max(len(text), self.longest.get(text[0], 0))

    def cut(self, text: str) -> list[tuple[int, str]]:
        """(id, surface) of the best path; -1 for a run of unknown characters."""
        n = len(text)
        totals = array("f", bytes(4 * (n + 1)))  # stores in single precision, gives back double
        starts, ids = [-1] * (n + 1), [-1] * (n + 1)
        for start in range(n):
            so_far, single_found = totals[start], False
            for end in range(start + 1, min(n, start + self.longest.get(text[start], 0)) + 1):
                found = self.table.get(text[start:end])
                if found is None:
                    continue
                single_found = single_found or end == start + 1
                total = single(so_far + found[0])
                if starts[end] < 0 or total > totals[end]:
                    totals[end], starts[end], ids[end] = total, start, found[1]
            if not single_found:
                total = single(so_far + self.unknown_score)
                if starts[start + 1] < 0 or total > totals[start + 1]:
                    totals[start + 1], starts[start + 1], ids[start + 1] = total, start, -1
        return self.path(text, starts, ids)

    def path(self, text: str, starts: list[int], ids: list[int]) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        end = len(text)
        while end > 0:
            start, number = starts[end], ids[end]
            if number < 0 and found and found[-1][0] < 0:
                found[-1] = (-1, text[start:end] + found[-1][1])
            else:
                found.append((number, text[start:end]))
            end = start
        return found[::-1]


def user_defined_score(piece: str) -> float:
    """What a user-defined piece counts, as SentencePiece 0.2.3 weighs it (measured): the more, the longer it is."""
    return single(0.1 * (len(piece.encode()) - 1))


def single(value: float) -> float:
    """`value` rounded to single precision."""
    return array("f", [value])[0]
