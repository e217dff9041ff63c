"""`TextDocument`: texts to train or measure a tokenizer on, one at a time, in one fixed order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import DataError
from fledge.log import warn

CORPUS = "corpus.jsonl"  # what `data build` writes: {"path", "text", "split"} a line
MAX_LINE_BYTES = 256 << 20
SNIFFED_BYTES = 8192


@dataclass(frozen=True)
class TextDocument:
    """One text and the relative path it is known by."""

    path: str
    text: str

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode("utf-8", "replace"))

    @property
    def domain(self) -> str:
        """What it is a sample of: the first folder of its path, or the file itself."""
        return self.path.partition("/")[0]


def read_documents(path: str | Path, split: str = "train", limit_bytes: int = 0) -> Iterator[TextDocument]:
    """Documents of a text file, a folder of text, a folder written by `data build` or JSON lines with `text`.

    Of lines that name their split only those of `split` are read ("all" reads every one). Stops after the document
    that reaches `limit_bytes` (0: no limit). Raises DataError naming file and line; skips binary files.
    """
    path = Path(path)
    if (path / CORPUS).is_file():
        found = read_lines(path / CORPUS, split)
    elif path.is_file():
        found = read_lines(path, split) if path.suffix == ".jsonl" else read_files([(path.name, path)])
    elif path.is_dir():
        found = read_files(sorted(visible_files(path)))
    else:
        raise DataError(f"{path}: expected a file or folder of text, found none; check the path")
    n_bytes = 0
    for document in found:
        yield document
        n_bytes += document.n_bytes
        if limit_bytes and n_bytes >= limit_bytes:
            return


def total_bytes(path: str | Path) -> int:
    """Bytes on disk of what `read_documents` would read at most: the measure of its progress."""
    path = Path(path)
    if (path / CORPUS).is_file():
        path = path / CORPUS
    files = [path] if path.is_file() else [file for _, file in visible_files(path)] if path.is_dir() else []
    return sum(file.stat().st_size for file in files)


def visible_files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), path


def read_files(files: list[tuple[str, Path]]) -> Iterator[TextDocument]:
    skipped = []
    for name, path in files:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: can't be read ({error.strerror or type(error).__name__})") from None
        try:
            text = "" if b"\0" in data[:SNIFFED_BYTES] else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = ""
        if text:
            yield TextDocument(name, text)
        elif data:
            skipped.append(name)
    if skipped:
        warn(f"{len(skipped)} files are not UTF-8 text and were left out, the first is {skipped[0]!r:.80}")


def read_lines(path: Path, split: str) -> Iterator[TextDocument]:
    with open(path, "rb") as file:
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
                yield TextDocument(name if isinstance(name, str) else f"{path.stem}:{number}", row["text"])


def parse_line(line: bytes, at: str) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{at}: not JSON; the file is damaged or not JSON lines") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f"{at}: expected an object with a text under `text`, got {type(row).__name__}")
    return row
