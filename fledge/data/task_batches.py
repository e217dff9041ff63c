"""Batches of labelled rows for a task head: framed as the model wants its texts, padded to the longest row.

B rows, T tokens a row. Epochs and their order are those of every objective (`KeyedBatches`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fledge.batch import Batch
from fledge.data.keyed_batches import KeyedBatches, Piece, laid
from fledge.data.task_framing import Reader, laid_words, windows
from fledge.data.task_rows import ChoiceExample, SpanExample, TextExample, WordsExample
from fledge.errors import DataError
from fledge.text.framing import Framed


def piece_of(
    reader: Reader, framed: Framed, weight: np.ndarray | None = None, targets: np.ndarray | None = None
) -> Piece:
    ids, kinds = np.array(framed.ids, np.int64), reader.kinds_of(framed)
    return Piece(ids, ids if targets is None else targets, np.ones(len(ids), np.float32) if weight is None else weight,
                 None if kinds is None else np.array(kinds, np.int64))  # fmt: skip


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
        rows = [[piece_of(self.reader, self.framed[n])] for n in numbers]
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
        for example in examples:
            framed, firsts, _ = laid_words(reader, example.words)
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
            [piece_of(self.reader, framed, weight, targets)]
            for framed, targets, weight in map(self.laid.__getitem__, numbers)
        ]
        return laid(rows, 0, self.pad_id, tuple(self.examples[n].place for n in numbers))


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
        rows = [[piece_of(self.reader, w.framed)] for w in chosen]
        names = tuple(self.examples[w.example].place for w in chosen)
        return replace(laid(rows, 0, self.pad_id, names), answers=self.answers_of[list(numbers)])


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
        rows = [[piece_of(self.reader, framed)] for n in numbers for framed in self.framed[n]]
        names = tuple(self.examples[n].place for n in numbers for _ in range(self.n_choices))
        right = [int(c == self.examples[n].answer) for n in numbers for c in range(self.n_choices)]
        return replace(laid(rows, 0, self.pad_id, names), answers=torch.tensor(right))
