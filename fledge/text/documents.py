"""The documents of a source, one at a time, in one fixed order: text, HTML, JSON lines, Parquet, Arrow, web archives.

There is one rule for what a file holds: training a tokenizer, building a corpus and evaluating read the same text.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from fledge.errors import ConfigError
from fledge.log import warn
from fledge.text.bad_rows import BadRow, BadRows, excerpt
from fledge.text.compressed import damage_of
from fledge.text.config import ReadingConfig
from fledge.text.document import Document as Document
from fledge.text.html_text import html_text
from fledge.text.rows import json_lines, table_rows
from fledge.text.source_files import SourceFile, source_files, visible_files
from fledge.text.warc import Skipped, decoded, warc_records

CORPUS = "corpus.jsonl"  # what `data build` writes: {"path", "text", "split"} a line
SNIFFED_BYTES = 8192
MOST_REPLACED = 0.3  # more undecodable characters than this share: not text
LINES = (".jsonl", ".ndjson")
TABLES = (".parquet", ".arrow")
ARCHIVES = (".warc", ".wet")
PAGES = (".html", ".htm", ".xhtml")
DEFAULT = ReadingConfig()


@dataclass
class Tally:
    """What was met: paths `replaced` (not UTF-8, decoded with U+FFFD), `binary` and `empty` (both skipped), and the bad
    rows of the `n_rows` that were good."""

    replaced: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    bad: BadRows = field(default_factory=BadRows, compare=False)
    n_rows: int = field(default=0, compare=False)


def read_documents(
    path: str | Path, split: str = "train", limit_bytes: int = 0, reading: ReadingConfig = DEFAULT
) -> Iterator[Document]:
    """Documents of a folder written by `data build` or of any other source, of which `read_source` tells.

    Of lines that name their split only those of `split` are read ("all" reads every one). Stops after the document
    that reaches `limit_bytes` (0: no limit). Raises DataError naming file and line where too much is bad; what is left
    out is told in a warning.
    """
    path, tally = Path(path), Tally()
    if (path / CORPUS).is_file():
        path, reading = path / CORPUS, replace(reading, text_field="text", max_bad_share=0.0)
    n_bytes = 0
    for document in read_source(path, tally, reading, split):
        yield document
        n_bytes += document.n_bytes
        if limit_bytes and n_bytes >= limit_bytes:
            return
    if tally.binary:
        warn(f"{len(tally.binary)} files are not text and were left out, the first is {tally.binary[0]!r:.80}")
    if tally.replaced:
        warn(f"{len(tally.replaced)} files are not UTF-8; undecodable bytes became U+FFFD: {tally.replaced[0]!r:.80}")
    if tally.bad.reasons:
        warn(f"{tally.bad.reasons.total()} bad rows were left out, the first is {tally.bad.first[0]!s:.160}")


def read_source(
    source: str | Path, tally: Tally, reading: ReadingConfig = DEFAULT, split: str = "all"
) -> Iterator[Document]:
    """Documents of a file, a folder or a URL, ordered by file; a file that ends in .gz or .zst is read as what it
    holds. What is no text, what is blank and what is bad is left out and counted. Raises DataError if the source is
    missing or can't be read and, at the end, if more than `reading.max_bad_share` of its rows were bad."""
    n_before = tally.n_rows
    tally.bad.begin_source()
    for file in source_files(source):
        found = False
        for row in file_rows(file, reading, tally, split):
            found = True
            if isinstance(row, BadRow):
                tally.bad.add(row)
            elif isinstance(row, Skipped):
                tally.binary.append(row.path)
            else:
                tally.n_rows += 1
                if row.text and not row.text.isspace():
                    yield row
                else:
                    tally.empty.append(row.path)
        if not found and split == "all":  # a table or lines without a row
            tally.empty.append(file.path)
    tally.bad.refuse_beyond(reading.max_bad_share, tally.n_rows - n_before)


def with_text(found: Iterable[Document], tally: Tally) -> Iterator[Document]:
    """The documents that hold more than space; the others are counted."""
    for document in found:
        if document.text and not document.text.isspace():
            yield document
        else:
            tally.empty.append(document.path)


def file_rows(
    file: SourceFile, reading: ReadingConfig, tally: Tally, split: str = "all"
) -> Iterator[Document | BadRow | Skipped]:
    """What one file holds, by its ending: rows, or itself as a document."""
    with file.opened() as stream:
        if file.kind in LINES:
            yield from json_lines(file, stream, reading, split)
        elif file.kind in ARCHIVES:
            yield from warc_records(file, stream, reading)
        elif file.kind in TABLES and not file.pack:
            yield from table_rows(file, stream, reading)
        else:
            yield read_text(file, stream, reading, tally)
        damage = damage_of(stream)
        if damage is not None:
            detail = f"{damage.reason}; what stands before is read, the rest is left out"
            yield BadRow(file.path, "byte", damage.byte, damage.reason, detail)


def read_file(file: SourceFile, tally: Tally, reading: ReadingConfig = DEFAULT) -> str | None:
    """The text of a file that is one document, or None for one that is not text, which is counted."""
    with file.opened() as stream:
        row = read_text(file, stream, reading, tally)
    return row.text if isinstance(row, Document) else None


def read_text(file: SourceFile, stream: BinaryIO, reading: ReadingConfig, tally: Tally) -> Document | BadRow | Skipped:
    """A file as one document: a byte-order mark removed, line ends kept; of a page of HTML the visible text. Of a
    binary file only the beginning is read."""
    data = stream.read(SNIFFED_BYTES)
    if b"\0" in data:
        return Skipped(file.name)
    data += stream.read(max(0, reading.max_document_bytes + 1 - len(data)))
    if len(data) > reading.max_document_bytes:
        detail = f"expected at most {reading.max_document_bytes} bytes for a document; raise reading.max_document_bytes"
        return BadRow(file.path, "byte", reading.max_document_bytes, "too large", detail, excerpt(data))
    if file.kind in PAGES and reading.html == "text":
        return Document(file.name, html_text(decoded(data)))
    try:
        return Document.of(file.name, data.decode("utf-8-sig"), data.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", errors="replace")
    if text.count("\ufffd") > MOST_REPLACED * len(text):
        return Skipped(file.name)
    tally.replaced.append(file.name)
    return Document(file.name, text)


def total_bytes(path: str | Path) -> int:
    """Bytes on disk of what `read_documents` would read at most: the measure of its progress."""
    path = Path(path)
    if (path / CORPUS).is_file():
        path = path / CORPUS
    if path.is_dir():
        return sum(file.stat().st_size for _, file in visible_files(path))
    return path.stat().st_size if path.is_file() else 0


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
