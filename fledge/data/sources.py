"""Where documents come from: the Python installation, a folder of text, one file. Imports no torch.

`gather` gives documents in one fixed order and reads them anew each time, so that a corpus needs no more memory than
its largest document.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fledge.data.config import PYTHON
from fledge.errors import DataError
from fledge.text.documents import read_documents

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
        return len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass
class Tally:
    """What was met: paths `replaced` (not UTF-8, decoded with U+FFFD), `binary` and `empty` (both skipped)."""

    replaced: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


def gather(source: str, tally: Tally | None = None) -> Iterator[Document]:
    """Every document of a source, ordered by path. Raises DataError if the path is missing.

    A folder: each file that is text, whatever its ending (HTML as it is written); hidden ones are left out. One file
    whose name ends in .jsonl: a document for the `text` of each line.
    """
    tally = tally if tally is not None else Tally()
    if source == PYTHON:
        from fledge.data.python_source import python_documents

        return (document for document in python_documents(tally) if not is_empty(document, tally))
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        found = json_lines(path)
    elif path.is_file():
        found = read_files([(path.name, path)], tally)
    elif path.is_dir():
        found = read_files(text_files(path), tally)
    else:
        raise DataError(f"{path}: expected a folder or file of text, found none; check the path (or source=python)")
    return (document for document in found if not is_empty(document, tally))


def text_files(folder: Path) -> list[tuple[str, Path]]:
    """(relative path, path) of the files below a folder that are not hidden, ordered by relative path."""
    rows = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or not path.is_file():
            continue
        rows.append((printable(relative.as_posix()), path))
    return sorted(rows)


def read_files(files: list[tuple[str, Path]], tally: Tally) -> Iterator[Document]:
    for name, path in files:
        text = decode(path.read_bytes(), name, tally)
        if text is not None:
            yield Document(name, text)


def json_lines(path: Path) -> Iterator[Document]:
    """The documents of JSON lines, under their `path` or their line number. Raises DataError naming the line."""
    times: Counter[str] = Counter()
    for document in read_documents(path, split="all"):
        name = printable(document.path)
        times[name] += 1
        yield Document(name if times[name] == 1 else f"{name}#{times[name]}", document.text)


def decode(raw: bytes, name: str, tally: Tally) -> str | None:
    """A file's text (a byte-order mark removed, line ends kept), or None for a binary file; both are tallied."""
    if b"\0" in raw[:SNIFFED_BYTES]:
        tally.binary.append(name)
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("utf-8-sig", errors="replace")
    if text.count("\ufffd") > MOST_REPLACED * len(text):
        tally.binary.append(name)
        return None
    tally.replaced.append(name)
    return text


def is_empty(document: Document, tally: Tally) -> bool:
    if document.text.strip():
        return False
    tally.empty.append(document.path)
    return True


def printable(path: str) -> str:
    """A path as valid Unicode: bytes that were not UTF-8 are spelled out."""
    return path.encode("utf-8", "backslashreplace").decode()


def is_held_out(path: str) -> bool:
    """True for one path in sixteen: those whose SHA-256 begins with hex digit 0."""
    return hashlib.sha256(path.encode()).hexdigest()[0] == "0"
