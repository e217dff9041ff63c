"""Guesses at an answer's next tokens, to be checked by the model many at once. Imports no torch.

A guess is right when it is the token that the sampler itself chooses there, so a request's tokens stay what they are,
greedy or sampled; a wrong guess costs the computation of its row.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 4, 2


class PromptLookup:
    """Guesses that what followed the last few tokens before follows them again (Saxena 2023, prompt lookup decoding).

    `longest` and `shortest`: how many tokens must agree; the latest place where the most do is taken.
    """

    def __init__(self, ids: Sequence[int], longest: int = LONGEST, shortest: int = SHORTEST):
        self.ids: list[int] = []
        self.lengths = range(longest, shortest - 1, -1)
        self.ends: dict[tuple[int, ...], int] = {}  # some tokens that follow each other -> where they last ended
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """One more token of the document. What ends with it counts from the next on: nothing follows it yet."""
        for length in self.lengths:
            if len(self.ids) >= length:
                self.ends[tuple(self.ids[-length:])] = len(self.ids)
        self.ids.append(token)

    def guess(self, n: int) -> list[int]:
        """Up to `n` tokens that may follow; [] if the last ones are new."""
        for length in self.lengths:
            end = self.ends.get(tuple(self.ids[-length:])) if len(self.ids) >= length else None
            if end is not None:
                return self.ids[end : end + n]
        return []
