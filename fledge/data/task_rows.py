"""Labelled rows of a file as examples of a task. Every mistake is a DataError that names the file and the line.

    sequence, regression   {"text", "text_pair"?, "label"}, or columns of a table
    token                  {"tokens": [...], "tags": [...]}, or CoNLL: a word and its tag on a line, sentences apart
    span                   {"question", "context", "answers": {"text": [...], "answer_start": [...]}}, or SQuAD's
    choice                 {"question", "choices": [...], "answer": place or text}
    text2text              {"source", "target"}, or two columns of a table

Imports no torch.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fledge.data.permutation import KeyedPermutation
from fledge.data.task_config import NAMES, Task, TaskDataConfig
from fledge.errors import DataError

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class TextExample:
    """One text or two with a label, several labels, or a number. `place`: file and line."""

    place: str
    text: str
    pair: str | None
    answer: str | float | tuple[str, ...] | None


@dataclass(frozen=True)
class WordsExample:
    """Words, each with its tag (none where nothing is known)."""

    place: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None


@dataclass(frozen=True)
class SpanExample:
    """A question on a context. `answers`: (text, first character) of each right answer; none: it has none."""

    place: str
    name: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class ChoiceExample:
    """A question with its choices; `answer` counts from 0."""

    place: str
    question: str
    choices: tuple[str, ...]
    answer: int | None


@dataclass(frozen=True)
class PairExample:
    """A text to read and the one to write for it."""

    place: str
    source: str
    target: str | None


Example = TextExample | WordsExample | SpanExample | ChoiceExample | PairExample


def read_examples(path: str | Path, task: Task, config: TaskDataConfig, answered: bool = True) -> list[Example]:
    """Every example of a file, in order. Unless `answered`, rows may lack their answers. Raises DataError."""
    path = Path(path)
    text = file_text(path)
    if task == "token" and not text.lstrip().startswith(("{", "[")):
        found: list[Example] = list(conll_sentences(text, path, answered))
    else:
        read = READERS[task]
        found = [one for row, at in rows_of(text, path, config) for one in read(row, at, config, answered)]
    if task == "regression":
        found = [as_number(one) for one in found if isinstance(one, TextExample)]
    if not found:
        raise DataError(f"{path}: expected labelled rows, found none; add some, or name another file")
    return found


def file_text(path: Path) -> str:
    """The text of a file, gunzipped. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file of labelled rows, found none; check the path")
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read ({str(error)[:80]}); make it anew") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: expected at most {MAX_FILE_BYTES} bytes; split it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, got another byte at {error.start}; convert it") from None


def rows_of(text: str, path: Path, config: TaskDataConfig) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row as a mapping, with its place: of JSON lines, of an array, of SQuAD's nesting, of a table."""
    start = text.lstrip()[:1]
    if start == "[":
        yield from objects(enumerate(parse(text, str(path)), 1), path, "row")
    elif start == "{":
        whole = whole_object(text)
        if isinstance(whole, dict) and isinstance(whole.get("data"), list):
            yield from squad_rows(whole["data"], path)
            return
        lines = ((n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip())
        yield from objects(((n, parse(line, f"{path}, line {n}")) for n, line in lines), path, "line")
    else:
        yield from table_rows(text, path, config)


def whole_object(text: str) -> Any:
    """The text as one JSON value; None for lines of them."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def parse(text: str, at: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{at}: expected JSON, got what is none ({str(error)[:80]})") from None


def objects(rows: Any, path: Path, unit: str) -> Iterator[tuple[dict[str, Any], str]]:
    for number, row in rows:
        at = f"{path}, {unit} {number}"
        if not isinstance(row, dict):
            raise DataError(f"{at}: expected an object, got {type(row).__name__}")
        yield row, at


def squad_rows(articles: list[Any], path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """One row for each question of SQuAD's articles and paragraphs, with the title of its article."""
    number = 0
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    number += 1
                    answers = asked.get("answers") or []
                    row = {"id": asked.get("id", number), "question": asked["question"], "title": article.get("title"),
                           "context": paragraph["context"],
                           "answers": {"text": [one["text"] for one in answers],
                                       "answer_start": [one["answer_start"] for one in answers]}}  # fmt: skip
                    yield row, f"{path}, question {number}"
    except (KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path}, question {number}: expected SQuAD's articles, paragraphs and questions, got others"
        ) from None


def table_rows(text: str, path: Path, config: TaskDataConfig) -> Iterator[tuple[dict[str, Any], str]]:
    """Rows of a table. Tabs separate as they stand (quotes mean nothing); commas as RFC 4180 says."""
    first = text.split("\n", 1)[0]
    tabs = "\t" in first
    csv.field_size_limit(MAX_FILE_BYTES)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tabs else ",", quoting=quoting)
    names: list[str] | None = None
    try:
        for cells in reader:
            at = f"{path}, line {reader.line_num}"
            if not cells:
                continue
            if names is None and config.header:
                names = cells
                continue
            names = names or [str(place) for place in range(len(cells))]
            if len(cells) < len(names) and config.header:
                raise DataError(f"{at}: expected {len(names)} columns as in the first line, got {len(cells)}")
            if config.header and any(cells[len(names) :]):
                raise DataError(
                    f"{at}: expected {len(names)} columns as in the first line, got {len(cells)}; quote a text that "
                    "holds what separates columns"
                )
            if not config.header:
                names = [str(place) for place in range(len(cells))]
            yield dict(zip(names, cells, strict=False)), at
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: expected a table, got what is none ({error})") from None


def conll_sentences(text: str, path: Path, answered: bool) -> Iterator[WordsExample]:
    """Sentences of words with the tag in the last column, apart by empty lines; `-DOCSTART-` and comments left out."""
    words: list[str] = []
    tags: list[str] = []
    began = 1
    lines, n_cells = [*text.split("\n"), ""], 0
    for number, line in enumerate(lines, 1):
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or cells[0] == "-DOCSTART-":
            if words:
                yield WordsExample(f"{path}, line {began}", tuple(words), tuple(tags) if tags else None)
            words, tags, began = [], [], number + 1
            continue
        if line.startswith("# ") and len(cells) != n_cells:  # else a row whose word is #
            continue
        if len(cells) < 2 and answered:
            raise DataError(f"{path}, line {number}: expected a word and its tag, got {line[:60]!r}")
        n_cells = len(cells)
        if answered and not cells[-1].strip():
            raise DataError(f"{path}, line {number}: expected a word and its tag, got an empty tag")
        words.append(cells[0])
        if len(cells) > 1:
            tags.append(cells[-1].strip())


def text_row(row: dict[str, Any], at: str, config: TaskDataConfig, answered: bool) -> Iterator[TextExample]:
    text = string(row, column(row, "text", config.text, at, True), at)
    pair_at = column(row, "pair", config.pair, at, False)
    label_at = column(row, "label", config.label, at, answered)
    answer = None if label_at is None else label_of(row[label_at], f"{at}, {label_at}")
    if answered and (answer in (None, "") or isinstance(answer, tuple) and "" in answer):
        raise DataError(f"{at}, {label_at}: expected a label, got none; remove the row")
    yield TextExample(at, text, None if pair_at is None else string(row, pair_at, at), answer)


def pair_row(row: dict[str, Any], at: str, config: TaskDataConfig, answered: bool) -> Iterator[PairExample]:
    source = string(row, column(row, "source", config.text, at, True, "text"), at)
    target_at = column(row, "target", config.label, at, answered, "label")
    target = None if target_at is None else string(row, target_at, at)
    if not source.strip() or target is not None and not target.strip():
        raise DataError(f"{at}: expected two texts, got an empty one; remove the row")
    yield PairExample(at, source, target)


def column(row: dict[str, Any], part: str, named: str, at: str, needed: bool, key: str = "") -> str | None:
    """The key of a part of a row, which `data.{key or part}` names. Raises DataError where it is needed, or named, and
    missing."""
    for name in (named,) if named else NAMES[part]:
        if name in row:
            return name
    if needed or named:
        keys = ", ".join(map(str, list(row)[:8]))
        raise DataError(
            f"{at}: expected {named or 'one of ' + ', '.join(NAMES[part])}, got {keys}; set data.{key or part}=…"
        )
    return None


def string(row: dict[str, Any], key: str | None, at: str) -> str:
    value = row.get(key) if key is not None else None
    if not isinstance(value, str):
        raise DataError(f"{at}, {key}: expected text, got {type(value).__name__}")
    return value


def label_of(value: Any, at: str) -> str | float | tuple[str, ...] | None:
    """A label as text, several, or a number that is no whole one."""
    if isinstance(value, list):
        return tuple(str("" if one is None else label_of(one, at)) for one in value)
    if isinstance(value, bool) or value is None:
        return None if value is None else str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else value
    if isinstance(value, str):
        return value.strip()
    raise DataError(f"{at}: expected a label, a number or a list of labels, got {type(value).__name__}")


def as_number(example: TextExample) -> TextExample:
    """The example of a regression. Raises DataError for an answer that is no finite number."""
    if example.answer is None:
        return example
    try:
        number = float(example.answer)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{example.place}: expected a finite number, got {str(example.answer)[:40]!r}")
    return TextExample(example.place, example.text, example.pair, number)


def words_row(row: dict[str, Any], at: str, config: TaskDataConfig, answered: bool) -> Iterator[WordsExample]:
    words = row.get("tokens", row.get("words"))
    tags = row.get("tags", row.get("ner_tags", row.get("labels")))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise DataError(f"{at}, tokens: expected a list of words, got {type(words).__name__}")
    if tags is None and not answered:
        yield WordsExample(at, tuple(words), None)
        return
    if not isinstance(tags, list) or len(tags) != len(words):
        got = f"{len(tags)}" if isinstance(tags, list) else type(tags).__name__
        raise DataError(f"{at}, tags: expected a tag for each of {len(words)} words, got {got}")
    bare = next((word for word, tag in zip(words, tags, strict=True) if tag in (None, "")), None)
    if bare is not None:
        raise DataError(f"{at}, tags: expected a tag for each word, got none for {bare[:40]!r}")
    yield WordsExample(at, tuple(words), tuple(str(tag) for tag in tags))


def span_row(row: dict[str, Any], at: str, config: TaskDataConfig, answered: bool) -> Iterator[SpanExample]:
    question, context = string(row, "question", at), string(row, "context", at)
    answers = row.get("answers") or {}
    if isinstance(answers, list) and all(isinstance(one, dict) for one in answers):
        answers = {"text": [one.get("text") for one in answers],
                   "answer_start": [one.get("answer_start") for one in answers]}  # fmt: skip
    if not isinstance(answers, dict) or answers and not {"text", "answer_start"} <= answers.keys():
        raise DataError(f"{at}, answers: expected text and answer_start of each, got {str(answers)[:60]}")
    texts, starts = answers.get("text", []), answers.get("answer_start", [])
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise DataError(f"{at}, answers: expected as many starts as texts")
    if answered and "answers" not in row:
        raise DataError(f"{at}: expected answers, found none (a question without one has an empty list)")
    found = []
    for text, start in zip(texts, starts, strict=True):
        counted = isinstance(start, int) and not isinstance(start, bool) and start >= 0
        if not isinstance(text, str) or not counted or context[start : start + len(text)] != text:
            raise DataError(
                f"{at}, answers: expected {str(text)[:40]!r} at character {str(start)[:20]} of the context, got other "
                "text"
            )
        found.append((text, start))
    yield SpanExample(at, str(row.get("id", at)), question, context, tuple(found))


def choice_row(row: dict[str, Any], at: str, config: TaskDataConfig, answered: bool) -> Iterator[ChoiceExample]:
    question = string(row, "question" if "question" in row else "prompt", at)
    choices = row.get("choices", row.get("endings"))
    if isinstance(choices, dict):
        choices = choices.get("text")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
        raise DataError(f"{at}, choices: expected at least two texts, got {str(choices)[:40]}")
    answer = row.get("answer", row.get("label", row.get("gold")))
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    elif isinstance(answer, str) and answer.isascii() and answer.isdigit() and len(answer) < 10:
        answer = int(answer)
    elif isinstance(answer, str) and len(answer) == 1 and answer.isascii() and answer.isalpha():
        answer = ord(answer.upper()) - ord("A")
    if answer is None and not answered:
        yield ChoiceExample(at, question, tuple(choices), None)
        return
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise DataError(
            f"{at}, answer: expected one of {len(choices)} choices (from 0, or its text), got {answer!r:.40}"
        )
    yield ChoiceExample(at, question, tuple(choices), answer)


READERS: dict[str, Callable[..., Iterator[Any]]] = {
    "sequence": text_row, "regression": text_row, "token": words_row, "span": span_row, "choice": choice_row,
    "text2text": pair_row,
}  # fmt: skip


def split_held_out(examples: list[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training and held-out examples by a keyed order: the same of the same file and seed."""
    if len(examples) < 2:
        raise DataError("data.path: expected at least two rows, one to hold out; add some, or name others by data.val")
    n_held = min(len(examples) - 1, max(1, round(len(examples) * fraction)))
    order = KeyedPermutation(len(examples), seed, 0).at(np.arange(len(examples)))
    held = set(order[:n_held].tolist())
    return [e for i, e in enumerate(examples) if i not in held], [examples[i] for i in sorted(held)]


def label_names(examples: Sequence[Example], given: tuple[str, ...], task: Task) -> tuple[str, ...]:
    """The labels in their order. Raises DataError for a row whose label is none of those given."""
    found: set[str] = set()
    for example in examples:
        if isinstance(example, WordsExample):
            labels: tuple[str, ...] = example.tags or ()
        elif isinstance(example, TextExample) and example.answer is not None:
            labels = example.answer if isinstance(example.answer, tuple) else (str(example.answer),)
        else:
            labels = ()
        unknown = set(labels) - set(given) if given else set()
        if unknown:
            raise DataError(f"{example.place}: expected one of {', '.join(given)[:200]}, got {min(unknown)[:40]!r}")
        found.update(labels)
    n_several = sum(isinstance(e, TextExample) and isinstance(e.answer, tuple) for e in examples)
    if given and (len(given) > 1 or n_several or task != "sequence"):
        return given
    found = set(given) or found
    if len(found) < 2 - bool(n_several) and task != "choice":
        raise DataError(f"labels: expected at least two, got {', '.join(found)[:60] or 'none'}; check data.label")
    return tuple(sorted(found, key=lambda name: (0, float(name), name) if is_number(name) else (1, 0.0, name)))


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
