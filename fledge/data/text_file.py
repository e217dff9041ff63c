"""Reading files as text, and counting those that aren't. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fledge.data.document import Document
from fledge.text.documents import read_documents

SNIFFED_BYTES = 8192
MOST_REPLACED = 0.3  # more undecodable characters than this share: not text


@dataclass
class Tally:
    """What was met: paths `replaced` (not UTF-8, decoded with U+FFFD), `binary` and `empty` (both skipped)."""

    replaced: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)


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


def printable(path: str) -> str:
    """A path as valid Unicode: bytes that were not UTF-8 are spelled out."""
    return path.encode("utf-8", "backslashreplace").decode()
