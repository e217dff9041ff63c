"""How texts become rows for a task head: framed as the model wants them, cut or laid in windows, and which characters
each token stands for. What is trained, predicted and served is laid out here. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fledge.data.task_rows import SpanExample
from fledge.errors import DataError
from fledge.text.framing import Framed
from fledge.text.tokenizer import Tokenizer

LEAST_CONTEXT = 8  # tokens of a context beside its question


@dataclass(frozen=True)
class Reader:
    """How texts become a row: the tokenizer's frame around at most `max_tokens`; `kinds`: whether segments are told
    apart; `global_question`: whether the first text's tokens are GLOBAL (Longformer)."""

    tokenizer: Tokenizer
    max_tokens: int
    kinds: bool = False
    global_question: bool = False

    def row(self, ids: Sequence[int], more: Sequence[int] | None = None) -> Framed:
        """One text or two, cut to fit: of two the longer first, from its end."""
        a, b = list(ids), None if more is None else list(more)
        over = len(a) + len(b or ()) + self.frame_tokens(b is not None) - self.max_tokens
        if over > 0 and b is None:
            a = a[: len(a) - over]
        elif over > 0:
            assert b is not None
            a, b = a[: (kept := kept_of(len(a), len(b), over))[0]], b[: kept[1]]
        return self.tokenizer.frame(a, b)

    def frame_tokens(self, pair: bool) -> int:
        """Special tokens around one text, or two."""
        return len(self.tokenizer.frame((), () if pair else None).ids)

    def kinds_of(self, framed: Framed) -> tuple[int, ...] | None:
        """The kinds of a row's tokens that the model is told; None: all are alike to it."""
        if self.global_question:
            return tuple(1 - kind for kind in framed.type_ids)
        return framed.type_ids if self.kinds else None


def kept_of(a: int, b: int, over: int) -> tuple[int, int]:
    """Lengths of two texts after `over` tokens were taken from the longer, then from both alike; of an odd number that
    is left the longer has one more, of texts of equal length the second. As `longest_first` of `tokenizers`."""
    left, low = max(0, a + b - over), min(a, b)
    low = min(low, left // 2)
    return (left - low, low) if a > b else (low, left - low)


def laid_words(reader: Reader, words: Sequence[str]) -> tuple[Framed, list[int], list[int]]:
    """A sentence's row; of each word the place of its first token in it, -1 for a word without one; and of each token
    of the sentence in the row the number of its word. What stands after a word that doesn't fit is left out too."""
    pieces, frame, lead = word_ids(reader.tokenizer, words), reader.frame_tokens(False), len_before(reader.tokenizer)
    ids: list[int] = []
    firsts: list[int] = []
    word_of: list[int] = []
    for number, piece in enumerate(pieces):
        fits = piece and len(ids) + len(piece) + frame <= reader.max_tokens
        firsts.append(lead + len(ids) if fits else -1)
        if not fits and piece:
            firsts += [-1] * (len(pieces) - len(firsts))
            break
        ids += piece
        word_of += [number] * len(piece)
    return reader.row(ids), firsts, word_of


def len_before(tokenizer: Tokenizer) -> int:
    """Special tokens before one text."""
    some = next(n for n in range(tokenizer.vocab_size) if not tokenizer.is_special(n))
    return tokenizer.frame([some]).ids.index(some)


def word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Tokens of each word as it stands in a text."""
    return tokenizer.encode_batch(spaced(tokenizer, words))


def spaced(tokenizer: Tokenizer, words: Sequence[str]) -> list[str]:
    """Words as they stand in a text: for byte-level tokenizers with the space before them."""
    return [f" {word}" for word in words] if tokenizer.kind == "bpe" else list(words)


@dataclass(frozen=True)
class Window:
    """A row of a question and a part of its context: `example` counts from 0; `offsets` [n, 2]: characters of the
    context that its tokens first:first+n stand for; `start`, `end`: places of the answer, 0 where it isn't here."""

    example: int
    framed: Framed
    first: int
    offsets: np.ndarray
    start: int
    end: int


def windows(reader: Reader, example: SpanExample, number: int, stride: int) -> Iterator[Window]:
    """The windows of one question, which share `stride` tokens of its context, or half of what the question leaves of a
    row. Raises DataError where it leaves no room for its context."""
    asked = reader.tokenizer.encode(example.question)
    found = reader.tokenizer.plain.encode(example.context, add_special_tokens=False)
    ids, offsets = list(found.ids), np.array(found.offsets, np.int64).reshape(-1, 2)
    room = reader.max_tokens - len(asked) - reader.frame_tokens(True)
    if room < LEAST_CONTEXT:
        raise DataError(
            f"{example.place}: expected room for {LEAST_CONTEXT} tokens of context or more beside the question, got "
            f"{room}; raise data.max_tokens"
        )
    stride = min(stride, room // 2)
    first = len(reader.tokenizer.frame(asked, (ids[0],) if ids else ()).ids) - 1 - after_pair(reader.tokenizer)
    answer = example.answers[0] if example.answers else None
    for begin in range(0, max(1, len(ids)), room - stride):
        part, spans = ids[begin : begin + room], offsets[begin : begin + room]
        start, end = places(spans, answer, first)
        yield Window(number, reader.tokenizer.frame(asked, part), first, spans, start, end)
        if begin + room >= len(ids):
            return


def after_pair(tokenizer: Tokenizer) -> int:
    """Special tokens after the second of two texts."""
    some = next(n for n in range(tokenizer.vocab_size) if not tokenizer.is_special(n))
    other = next(n for n in range(some + 1, tokenizer.vocab_size) if not tokenizer.is_special(n))
    ids = tokenizer.frame([some], [other]).ids
    return len(ids) - 1 - ids.index(other)


def places(offsets: np.ndarray, answer: tuple[str, int] | None, first: int) -> tuple[int, int]:
    """Places of the tokens in which an answer begins and ends; 0, 0 unless all of it is here."""
    if answer is None or not answer[0] or not len(offsets):
        return 0, 0
    begin, end = answer[1], answer[1] + len(answer[0])
    if offsets[0, 0] > begin or offsets[-1, 1] < end:
        return 0, 0
    starts = np.nonzero(offsets[:, 1] > begin)[0]
    ends = np.nonzero(offsets[:, 0] < end)[0]
    return (first + int(starts[0]), first + int(ends[-1])) if len(starts) and len(ends) else (0, 0)
