"""WARC files, as web archives keep pages (ISO 28500), and the plain texts made from them (WET). Records are read one
by one; one larger than a document may be is passed over without being held."""

from __future__ import annotations

import codecs
import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from fledge.text.bad_rows import BadRow, excerpt
from fledge.text.compressed import Unpacked, damage_of, unpacked
from fledge.text.config import ReadingConfig
from fledge.text.document import Document
from fledge.text.html_text import html_text
from fledge.text.source_files import SourceFile, printable

HEAD_BYTES = 64 << 10
PIECE_BYTES = 1 << 20
MOST_SKIPPED = 16  # times the largest document, in search of the next record
VERSION = re.compile(rb"WARC/[0-9.]+\s*$")
HTML_TYPES = ("text/html", "application/xhtml+xml")
NAMED_CHARSET = re.compile(
    rb"<(?:meta[^>]{0,200}charset|\?xml[^>]{0,200}encoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE
)
HTTP_END = re.compile(rb"\r?\n\r?\n")
# Encodings of text; Python knows more, some of them slow or no encodings of text at all.
CHARSETS = re.compile(r"(utf-?(8|16|32)|iso8859|cp\d|koi8|gb|big5|euc|shift_jis|iso2022|latin|mac|ascii|tis|hz|johab)")
# What pages mean by these, as browsers read them (WHATWG Encoding, 4.2): Python's own have fewer characters.
MEANT = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}


class Skipped(NamedTuple):
    """A record or file that is no text."""

    path: str


class Head(NamedTuple):
    """A record's fields, names in small letters, and how many bytes follow."""

    fields: dict[str, str]
    length: int


def warc_records(file: SourceFile, stream: BinaryIO, reading: ReadingConfig) -> Iterator[Document | BadRow | Skipped]:
    """A document for each text in the archive, under its address: pages (status 200) and texts made from them."""
    number = 0
    while (head := next_head(stream)) is not None:
        number += 1
        if isinstance(head, str):
            found = pass_to_next(stream, MOST_SKIPPED * reading.max_document_bytes)
            if found or damage_of(stream) is None:
                then = "passed over to the next record" if found else "no other follows; the rest is left out"
                yield BadRow(file.path, "record", number, "not a WARC record", f"{head}; {then}")
            if not found:
                return
            continue
        wanted = head.fields.get("warc-type") in ("response", "resource", "conversion")
        if not wanted or head.length > reading.max_document_bytes + HEAD_BYTES:
            whole = pass_over(stream, head.length)
            if wanted:
                detail = f"expected at most {reading.max_document_bytes} bytes, got {head.length}"
                yield BadRow(file.path, "record", number, "too large", detail)
        else:
            content = stream.read(head.length)
            whole = len(content) == head.length
            if whole:
                yield record_document(file, number, head, content, reading)
        if not whole and damage_of(stream) is None:
            yield BadRow(file.path, "record", number, "cut off", f"expected {head.length} bytes, the file ends before")


def next_head(stream: BinaryIO) -> Head | str | None:
    """The next record's head; None at the end; where something else stands, what is wrong with it."""
    line = stream.readline(HEAD_BYTES)
    while line and not line.strip():
        line = stream.readline(HEAD_BYTES)
    if not line:
        return None
    wrong = "" if VERSION.match(line) else f"expected WARC/1.0, got {line[:40]!r}"
    fields: dict[str, str] = {}
    size = 0
    while not wrong:
        line = stream.readline(HEAD_BYTES)
        size += len(line)
        if size > HEAD_BYTES or not line:
            wrong = "expected the end of the record's head" if line else "the file ends in a record's head"
        elif not line.strip():
            break
        name, colon, value = line.decode("utf-8", "replace").partition(":")
        if colon and not name.startswith((" ", "\t")):
            fields.setdefault(name.strip().lower(), value.strip())
    length = fields.get("content-length", "")
    if not wrong and not (length.isascii() and length.isdecimal() and len(length) < 19):
        wrong = f"expected Content-Length, got {length!r:.40}"
    if not wrong:
        return Head(fields, int(length))
    return wrong


def pass_to_next(stream: BinaryIO, most: int) -> bool:
    """Read on up to where a record begins; False if none does within `most` bytes. A buffered stream is looked into
    before it is read."""
    assert isinstance(stream, io.BufferedReader)
    while most > 0:
        ahead = stream.peek(8)[:8]
        if not ahead:
            return False
        if ahead.startswith(b"WARC/1."):
            return True
        most -= len(stream.readline(PIECE_BYTES))
    return False


def pass_over(stream: BinaryIO, length: int) -> bool:
    """Read that many bytes without keeping them; False if the stream ends before."""
    while length > 0:
        piece = len(stream.read(min(length, PIECE_BYTES)))
        if not piece:
            return False
        length -= piece
    return True


def record_document(
    file: SourceFile, number: int, head: Head, content: bytes, reading: ReadingConfig
) -> Document | BadRow | Skipped:
    name = printable(head.fields.get("warc-target-uri", "").strip("<>") or f"{file.name}:{number}")
    kind = head.fields.get("content-type", "").lower()
    if head.fields["warc-type"] == "response":
        if not kind.startswith("application/http"):
            return Skipped(name)
        status, fields, content = http_parts(content)
        if status != "200":
            return Skipped(name)
        kind = fields.get("content-type", "").lower()
        try:
            content = body(fields, content, reading.max_document_bytes)
        except ValueError as error:
            reason = str(error).partition(":")[0]
            return BadRow(file.path, "record", number, reason, f"{name}: {error}", excerpt(content))
    page = kind.startswith(HTML_TYPES)
    if not page and (not kind.startswith("text/plain") or b"\0" in content[:8192]):
        return Skipped(name)
    text = decoded(content, kind.partition("charset=")[2].partition(";")[0].strip("\"' "))
    return Document(name, html_text(text) if page and reading.html == "text" else text)


def http_parts(content: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status, fields and body of an HTTP answer as it came over the wire; some servers end a line with "\\n" alone."""
    end = HTTP_END.search(content)
    head, rest = (content[: end.start()], content[end.end() :]) if end else (content, b"")
    lines = [line.removesuffix("\r") for line in head[:HEAD_BYTES].decode("latin-1").split("\n")]
    words = lines[0].split()
    pairs = (line.partition(":") for line in lines[1:])
    fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return (words[1] if len(words) > 1 else ""), fields, rest


def body(fields: dict[str, str], content: bytes, most: int) -> bytes:
    """A body without its encodings. Raises ValueError, `reason: detail`, for one that can't be undone or is a bomb.
    Archives that undid them may still name them, so what doesn't look encoded is taken as it is."""
    if "chunked" in fields.get("transfer-encoding", "").lower():
        content = unchunked(content)
    encoding = fields.get("content-encoding", "identity").lower().strip()
    if encoding in ("gzip", "x-gzip") and content.startswith(b"\x1f\x8b"):
        stream = unpacked(io.BytesIO(content), ".gz")
        whole = stream.read(most + 1)
        if len(whole) > most:
            raise ValueError(f"too large: expected at most {most} bytes after gzip, got more")
        if isinstance(stream.raw, Unpacked) and stream.raw.damage is not None and not whole:
            raise ValueError("damaged body: not gzip as its Content-Encoding says")
        return whole
    if encoding == "deflate":
        return inflated(content, most)
    if encoding == "br" and b"<" not in content[:256]:
        raise ValueError("unknown encoding: expected gzip or deflate, got br")
    return content


def inflated(content: bytes, most: int) -> bytes:
    for bits in (15, -15):  # with zlib's head, as the standard says, or without it, as some servers do
        try:
            whole = zlib.decompressobj(bits).decompress(content, most + 1)
        except zlib.error:
            continue
        if len(whole) > most:
            raise ValueError(f"too large: expected at most {most} bytes after deflate, got more")
        return whole
    return content


def unchunked(content: bytes) -> bytes:
    """A body without the sizes of its chunks, or as it is if they aren't there."""
    found: list[bytes] = []
    at = 0
    while match := re.compile(rb"\s*([0-9a-fA-F]{1,8})[^\r\n]{0,200}\r?\n").match(content, at):
        size = int(match[1], 16)
        if not size:
            return b"".join(found)
        found.append(content[match.end() : match.end() + size])
        at = match.end() + size
    return b"".join(found) if found else content


def decoded(content: bytes, charset: str = "") -> str:
    """A page's text: UTF-8 if it is that, else the encoding that it names (`charset` comes first), else Windows-1252; a
    byte that is none of it becomes U+FFFD."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    inside = NAMED_CHARSET.search(content[:2048])
    written = inside[1].decode("ascii", "replace").lower() if inside else ""
    for name in (charset, "" if written.startswith("utf") else written):  # that could be read, so it isn't UTF-16
        try:
            found = codecs.lookup(name.removeprefix("x-")).name if name else ""
        except (LookupError, ValueError):
            continue
        if CHARSETS.match(found):
            return content.decode(MEANT.get(found, found), "replace")
    return content.decode("cp1252", "replace")
