"""Batches of labelled rows for a task head: framed as the model wants its texts, padded to the longest row.

B rows, T tokens a row. Epochs and their order are those of every objective (`KeyedBatches`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fledge.batch import Batch
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.data.task_rows import ChoiceExample, SpanExample, TextExample, WordsExample
from fledge.errors import DataError
from fledge.text.framing import Framed
from fledge.text.tokenizer import Tokenizer


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

    def piece(self, framed: Framed, weight: np.ndarray | None = None, targets: np.ndarray | None = None) -> Piece:
        ids = np.array(framed.ids, np.int64)
        kind = np.array(framed.type_ids, np.int64) if self.kinds else None
        if self.global_question:
            kind = 1 - np.array(framed.type_ids, np.int64)
        return Piece(ids, ids if targets is None else targets,
                     np.ones(len(ids), np.float32) if weight is None else weight, kind)  # fmt: skip


def kept_of(a: int, b: int, over: int) -> tuple[int, int]:
    """Lengths of two texts after `over` tokens were taken from the longer, then from both alike; of an odd number that
    is left the longer has one more, of texts of equal length the second. As `longest_first` of `tokenizers`."""
    left, low = max(0, a + b - over), min(a, b)
    low = min(low, left // 2)
    return (left - low, low) if a > b else (low, left - low)


class TaskBatches(KeyedBatches):
    """The endless sequence of batches over examples; `made` lays the rows of some out."""

    def __init__(self, reader: Reader, n_rows: int, rows: int, seed: int):
        self.reader, self.pad_id = reader, reader.tokenizer.pad_id or 0
        super().__init__(n_rows, 0, rows, seed)

    def made(self, chosen: Sequence[tuple[int, int]]) -> Batch:
        return self.laid_out([number for _, number in chosen])

    def in_order(self, start: int, stop: int) -> Batch:
        """Rows start:stop of the examples as they stand."""
        return self.laid_out(range(start, min(stop, self.rows_per_epoch)))

    @abstractmethod
    def laid_out(self, numbers: Sequence[int]) -> Batch:
        """The rows of these numbers as a batch."""


class TextBatches(TaskBatches):
    """One text or two a row; `answers` int64 [B] of a class, float32 [B] of a number, [B, labels] of several."""

    def __init__(self, reader: Reader, examples: Sequence[TextExample], answers: Tensor | None, rows: int, seed: int):
        self.examples, self.answers_of = examples, answers
        ids = reader.tokenizer.encode_batch([example.text for example in examples])
        pairs = iter(reader.tokenizer.encode_batch([e.pair for e in examples if e.pair is not None]))
        self.framed = [
            reader.row(a, next(pairs) if e.pair is not None else None) for a, e in zip(ids, examples, strict=True)
        ]
        super().__init__(reader, len(examples), rows, seed)

    @cached_property
    def n_cut(self) -> int:
        """Rows that lost some of their text."""
        return sum(len(framed.ids) == self.reader.max_tokens for framed in self.framed)

    def laid_out(self, numbers: Sequence[int]) -> Batch:
        rows = [[self.reader.piece(self.framed[n])] for n in numbers]
        batch = laid(rows, 0, self.pad_id, tuple(self.examples[n].place for n in numbers))
        return batch if self.answers_of is None else replace(batch, answers=self.answers_of[list(numbers)])


class WordBatches(TaskBatches):
    """Words of a sentence, a row; the first token of a word carries its label (`targets`, `weight` 1)."""

    def __init__(self, reader: Reader, examples: Sequence[WordsExample], labels: Sequence[str], rows: int, seed: int):
        self.examples = examples
        number = {name: place for place, name in enumerate(labels)}
        self.laid: list[tuple[Framed, np.ndarray, np.ndarray]] = []
        self.firsts: list[list[int]] = []
        """Of each example the place in its row of each word's first token; -1 for a word without one."""
        frame = reader.frame_tokens(False)
        lead = len_before(reader.tokenizer)
        for example in examples:
            pieces = word_ids(reader.tokenizer, example.words)
            ids: list[int] = []
            firsts = []
            for piece in pieces:
                fits = piece and len(ids) + len(piece) + frame <= reader.max_tokens
                firsts.append(lead + len(ids) if fits else -1)
                if not fits and piece:  # what stands after a word that doesn't fit is left out too
                    firsts += [-1] * (len(pieces) - len(firsts))
                    break
                ids += piece
            framed = reader.row(ids)
            targets = np.zeros(len(framed.ids), np.int64)
            weight = np.zeros(len(framed.ids), np.float32)
            for place, tag in zip(firsts, example.tags or (), strict=False):
                if place >= 0:
                    targets[place], weight[place] = number[tag], 1.0
            self.laid.append((framed, targets, weight))
            self.firsts.append(firsts)
        super().__init__(reader, len(examples), rows, seed)

    @cached_property
    def n_cut(self) -> int:
        """Words without a token of their own in their row: most were cut off with its end."""
        return sum(place < 0 for firsts in self.firsts for place in firsts)

    def laid_out(self, numbers: Sequence[int]) -> Batch:
        rows = [
            [self.reader.piece(framed, weight, targets)]
            for framed, targets, weight in map(self.laid.__getitem__, numbers)
        ]
        return laid(rows, 0, self.pad_id, tuple(self.examples[n].place for n in numbers))


def len_before(tokenizer: Tokenizer) -> int:
    """Special tokens before one text."""
    some = next(n for n in range(tokenizer.vocab_size) if not tokenizer.is_special(n))
    return tokenizer.frame([some]).ids.index(some)


def word_ids(tokenizer: Tokenizer, words: Sequence[str]) -> list[list[int]]:
    """Tokens of each word as it stands in a text: byte-level tokenizers get the space before it."""
    spaced = [f" {word}" for word in words] if tokenizer.kind == "bpe" else list(words)
    return tokenizer.encode_batch(spaced)


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


class SpanBatches(TaskBatches):
    """Question and context, a window a row; `answers` int64 [B, 2] are the places of the answer's first and last
    token, 0 and 0 (the first token) where the window lacks it."""

    def __init__(self, reader: Reader, examples: Sequence[SpanExample], stride: int, rows: int, seed: int):
        self.examples = examples
        self.windows = [w for n, example in enumerate(examples) for w in windows(reader, example, n, stride)]
        self.answers_of = torch.tensor([(w.start, w.end) for w in self.windows])
        super().__init__(reader, len(self.windows), rows, seed)

    def laid_out(self, numbers: Sequence[int]) -> Batch:
        chosen = [self.windows[n] for n in numbers]
        rows = [[self.reader.piece(w.framed)] for w in chosen]
        names = tuple(self.examples[w.example].place for w in chosen)
        return replace(laid(rows, 0, self.pad_id, names), answers=self.answers_of[list(numbers)])


def windows(reader: Reader, example: SpanExample, number: int, stride: int) -> list[Window]:
    """The windows of one question. Raises DataError where the question leaves no room for its context."""
    asked = reader.tokenizer.encode(example.question)
    found = reader.tokenizer.plain.encode(example.context, add_special_tokens=False)
    ids, offsets = list(found.ids), np.array(found.offsets, np.int64).reshape(-1, 2)
    room = reader.max_tokens - len(asked) - reader.frame_tokens(True)
    if room < 8 or room <= stride:
        raise DataError(
            f"{example.place}: expected room for more than {max(8, stride)} tokens of context beside the question, got "
            f"{room}; lower data.stride or raise data.max_tokens"
        )
    first = len(reader.tokenizer.frame(asked, (ids[0],) if ids else ()).ids) - 1 - after_pair(reader.tokenizer)
    answer = example.answers[0] if example.answers else None
    made = []
    for begin in range(0, max(1, len(ids)), room - stride):
        part, spans = ids[begin : begin + room], offsets[begin : begin + room]
        start, end = places(spans, answer, first)
        made.append(Window(number, reader.tokenizer.frame(asked, part), first, spans, start, end))
        if begin + room >= len(ids):
            break
    return made


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


class ChoiceBatches(TaskBatches):
    """A question with each of its choices, a row each, questions of one number of choices, all of a question's rows
    side by side; `rows` counts rows. `answers` int64 [B]: 1 for the right row, 0 for the others."""

    def __init__(self, reader: Reader, examples: Sequence[ChoiceExample], rows: int, seed: int):
        self.examples, self.n_choices = examples, len(examples[0].choices)
        for example in examples:
            if len(example.choices) != self.n_choices:
                raise DataError(
                    f"{example.place}: expected {self.n_choices} choices as in {examples[0].place}, got "
                    f"{len(example.choices)}; train on questions of one kind"
                )
        questions = reader.tokenizer.encode_batch([example.question for example in examples])
        choices = reader.tokenizer.encode_batch([choice for example in examples for choice in example.choices])
        self.framed = [
            [reader.row(asked, choices[n * self.n_choices + c]) for c in range(self.n_choices)]
            for n, asked in enumerate(questions)
        ]
        super().__init__(reader, len(examples), max(1, rows // self.n_choices), seed)

    def laid_out(self, numbers: Sequence[int]) -> Batch:
        rows = [[self.reader.piece(framed)] for n in numbers for framed in self.framed[n]]
        names = tuple(self.examples[n].place for n in numbers for _ in range(self.n_choices))
        right = [int(c == self.examples[n].answer) for n in numbers for c in range(self.n_choices)]
        return replace(laid(rows, 0, self.pad_id, names), answers=torch.tensor(right))
