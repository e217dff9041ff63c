"""Guesses at an answer's next tokens, to be checked by the model many at once. Imports no torch.

A guess is right when it is the token that the sampler itself chooses there, so a request's tokens stay what they are,
greedy or sampled; or, where that was asked for, when chance accepts it (fledge/engine/rejection.py). A wrong guess
costs the computation of its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from fledge.engine.row import Row, RunnerFace, as_array

if TYPE_CHECKING:
    import numpy as np

    from fledge.engine.choice import Choice

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


class Drafter(Protocol):
    """What guesses: up to `n` next tokens for each of some answers that decode."""

    def guess(self, choices: Sequence[Choice], n: int) -> list[list[int]]: ...


class LookupDrafter:
    """Guesses from each answer's own prompt and tokens."""

    def __init__(self) -> None:
        self.lookups: WeakKeyDictionary[Choice, PromptLookup] = WeakKeyDictionary()

    def guess(self, choices: Sequence[Choice], n: int) -> list[list[int]]:
        return [self.up_to_date(choice).guess(n) for choice in choices]

    def up_to_date(self, choice: Choice) -> PromptLookup:
        lookup = self.lookups.get(choice) or self.lookups.setdefault(choice, PromptLookup(()))
        for token in choice.text(len(lookup.ids), choice.text_tokens):
            lookup.add(token)
        return lookup


class DraftModel:
    """Guesses by a smaller model of the same vocabulary, each as the answer's own sampler would choose it: with the
    same noise the two agree more often than two samples (Leviathan et al. 2022, arXiv 2211.17192, is the idea).

    `runner` is the smaller model's, with room for a whole context of each of the engine's slots. `rejection`: guesses
    are drawn with noise of their own, and their odds are left with the answers.
    """

    def __init__(self, runner: RunnerFace, rejection: bool = False):
        self.runner, self.rejection = runner, rejection
        self.each = runner.n_blocks // runner.n_slots
        # slot -> whose document its blocks hold, how much of its text is hidden, and how many tokens are right
        self.seated: dict[int, tuple[Choice, int, int]] = {}

    def guess(self, choices: Sequence[Choice], n: int) -> list[list[int]]:
        longest = min(self.each * self.runner.block_tokens, self.runner.context_tokens) - n
        free = [choice for choice in choices if choice.sampler.automaton is None]  # it moves with what is said alone
        guesses: dict[Choice, list[int]] = {choice: [] for choice in free if choice.n_tokens <= longest}
        rows = [self.row(choice, self.known(choice), []) for choice in guesses]
        for number in range(n if rows else 0):
            for (choice, guessed), logits in zip(guesses.items(), self.runner.forward(rows), strict=True):
                choosable = as_array(logits)[-1][: choice.vocab_size]
                guessed.append(self.token(choice, choosable, choice.text_tokens + number))
            rows = [self.row(choice, choice.n_tokens + number, guessed) for choice, guessed in guesses.items()]
        for choice in guesses:
            assert choice.slot is not None
            self.seated[choice.slot] = choice, choice.hidden, choice.n_tokens
        return [guesses.get(choice, []) for choice in choices]

    def token(self, choice: Choice, logits: np.ndarray, position: int) -> int:
        if not self.rejection or choice.request.sampling.temperature == 0.0:
            return choice.sampler.choose(logits, position)
        token, odds = choice.sampler.guess(logits, position)
        choice.odds.append(odds)
        return token

    def known(self, choice: Choice) -> int:
        """How many tokens of an answer its slot's blocks hold; the last is always computed."""
        assert choice.slot is not None
        *owner, n_known = self.seated.get(choice.slot, (None, 0, 0))
        return min(n_known, choice.n_tokens - 1) if owner == [choice, choice.hidden] else 0

    def row(self, choice: Choice, start: int, guessed: list[int]) -> Row:
        """The answer's tokens from `start` on, guesses included."""
        assert choice.slot is not None
        ids = choice.ids(start, choice.n_tokens) + tuple(guessed[max(0, start - choice.n_tokens) :])
        first, n_blocks = choice.slot * self.each, -(-(start + len(ids)) // self.runner.block_tokens)
        return Row(tuple(range(first, first + n_blocks)), start, ids, sequence=choice.slot)
