"""`Document`: a text with a name; those of a file, a folder or JSON lines, one at a time, in one fixed order.

There is one rule for what a file holds: training a tokenizer, building a corpus and evaluating read the same text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fledge.errors import ConfigError, DataError
from fledge.log import warn

CORPUS = "corpus.jsonl"  # what `data build` writes: {"path", "text", "split"} a line
MAX_LINE_BYTES = 256 << 20
SNIFFED_BYTES = 8192
MOST_REPLACED = 0.3  # more undecodable characters than this share: not text


@dataclass(frozen=True)
class Document:
    """One text and its relative path, which names it and decides whether it is held out."""

    path: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def domain(self) -> str:
        """What it is a sample of: the first folder of its path, or the file itself."""
        return self.path.partition("/")[0]


@dataclass
class Tally:
    """What was met: paths `replaced` (not UTF-8, decoded with U+FFFD), `binary` and `empty` (both skipped)."""

    replaced: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def read_documents(path: str | Path, split: str = "train", limit_bytes: int = 0) -> Iterator[Document]:
    """Documents of a text file, a folder of text, a folder written by `data build` or JSON lines with `text`.

    Of lines that name their split only those of `split` are read ("all" reads every one). Stops after the document
    that reaches `limit_bytes` (0: no limit). Raises DataError naming file and line; skips binary files, with a warning.
    """
    path, tally = Path(path), Tally()
    lines = (path / CORPUS).is_file()
    n_bytes = 0
    for document in read_lines(path / CORPUS, split) if lines else read_text(path, tally, split):
        yield document
        n_bytes += document.n_bytes
        if limit_bytes and n_bytes >= limit_bytes:
            return
    if tally.binary:
        warn(f"{len(tally.binary)} files are not text and were left out, the first is {tally.binary[0]!r:.80}")
    if tally.replaced:
        warn(f"{len(tally.replaced)} files are not UTF-8; undecodable bytes became U+FFFD: {tally.replaced[0]!r:.80}")


def read_text(path: Path, tally: Tally, split: str = "all") -> Iterator[Document]:
    """Documents of a text file, a folder of text or JSON lines; what is no text is counted. Blank ones are left out.
    Raises DataError if the path is missing or can't be read."""
    if path.is_file() and path.suffix == ".jsonl":
        found = read_lines(path, split)
    elif path.is_file():
        found = read_files([(printable(path.name), path)], tally)
    elif path.is_dir():
        found = read_files(visible_files(path), tally)
    else:
        raise DataError(f"{path}: expected a folder or file of text, found none; check the path")
    return with_text(found, tally)


def with_text(found: Iterable[Document], tally: Tally) -> Iterator[Document]:
    """The documents that hold more than space; the others are counted."""
    for document in found:
        if document.text.strip():
            yield document
        else:
            tally.empty.append(document.path)


def total_bytes(path: str | Path) -> int:
    """Bytes on disk of what `read_documents` would read at most: the measure of its progress."""
    path = Path(path)
    if (path / CORPUS).is_file():
        path = path / CORPUS
    files = [path] if path.is_file() else [file for _, file in visible_files(path)] if path.is_dir() else []
    return sum(file.stat().st_size for file in files)


def refuse_inside(source: str | Path, out: str | Path) -> None:
    """Raises ConfigError if the folder `out` is the folder of text `source` or stands in it: what is written would be
    read the next time. Hidden folders are not read, and a folder written by `data build` is no folder of text."""
    folder, target = Path(source).resolve(), Path(out).resolve()
    if not folder.is_dir() or (folder / CORPUS).is_file() or not target.is_relative_to(folder):
        return
    if not any(part.startswith(".") for part in target.relative_to(folder).parts):
        raise ConfigError(
            f"{out}: expected a folder outside of the text in {source}, which is read again each time; choose another"
        )


def visible_files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of the files below a folder that are not hidden, ordered by relative path."""
    rows = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            rows.append((printable(relative.as_posix()), path))
    return sorted(rows)


def read_files(files: Iterable[tuple[str, Path]], tally: Tally) -> Iterator[Document]:
    for name, path in files:
        text = read_file(path, name, tally)
        if text is not None:
            yield Document(name, text)


def read_file(path: Path, name: str, tally: Tally) -> str | None:
    """A file's text (a byte-order mark removed, line ends kept), or None for a binary one, of which only the beginning
    is read; both are counted. Raises DataError if it can't be read."""
    with opened(path) as file:
        data = file.read(SNIFFED_BYTES)
        if b"\0" in data:
            tally.binary.append(name)
            return None
        data += file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
    if text.count("\ufffd") > MOST_REPLACED * len(text):
        tally.binary.append(name)
        return None
    tally.replaced.append(name)
    return text


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read, whose OSErrors are DataErrors with its name."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or type(error).__name__}); mend or move it") from None


def read_lines(path: Path, split: str) -> Iterator[Document]:
    """The documents of JSON lines, each under its `path` or its line number. Raises DataError naming the line."""
    with opened(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}, line {number}: expected at most {MAX_LINE_BYTES} bytes; split the document")
            if not line.strip():
                continue
            row = parse_line(line, f"{path}, line {number}")
            if split in ("all", row.get("split", split)):
                name = row.get("path")
                yield Document(printable(name if isinstance(name, str) else f"{path.stem}:{number}"), row["text"])


def parse_line(line: bytes, at: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{at}: not JSON; the file is damaged or not JSON lines") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f"{at}: expected an object with a text under `text`, got {type(row).__name__}")
    try:
        row["text"].encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{at}: expected Unicode, got a lone surrogate at character {error.start}; replace it with U+FFFD"
        ) from None
    return row


def printable(path: str) -> str:
    """A path as valid Unicode: bytes that were not UTF-8 are spelled out."""
    return path.encode("utf-8", "backslashreplace").decode()
