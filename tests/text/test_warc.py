"""Web archives: pages and the texts made from them come out, whatever stands between them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import pytest

from fledge.text.config import ReadingConfig
from fledge.text.documents import Tally, read_source

LENIENT = ReadingConfig(max_bad_share=1.0)


def record(kind: str, content: bytes, uri: str = "", content_type: str = "", version: str = "WARC/1.0") -> bytes:
    """One record, as ISO 28500 writes it."""
    fields = [version, f"WARC-Type: {kind}", f"Content-Length: {len(content)}"]
    fields += [f"WARC-Target-URI: {uri}"] if uri else []
    fields += [f"Content-Type: {content_type}"] if content_type else []
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + content + b"\r\n\r\n"


def page(uri: str, body: bytes, head: str = "Content-Type: text/html", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\n{head}\r\n\r\n".encode() + body
    return record("response", http, uri, "application/http; msgtype=response")


def chunked(body: bytes) -> bytes:
    pieces = [body[start : start + 7] for start in range(0, len(body), 7)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


HTML = "<nav>no</nav><p>Grüße & so</p>".encode()
RECORDS = [
    record("warcinfo", b"software: x\r\n", content_type="application/warc-fields"),
    record("request", b"GET / HTTP/1.1\r\n\r\n", "http://a/", "application/http; msgtype=request"),
    page("http://a/", HTML),
    page("http://a/chunked", chunked(HTML), "Content-Type: text/html\r\nTransfer-Encoding: chunked"),
    page("http://a/gzip", gzip.compress(HTML), "content-type: text/html; charset=utf-8\r\nContent-Encoding: gzip"),
    page("http://a/deflate", zlib.compress(HTML), "Content-Type: text/html\r\nContent-Encoding: deflate"),
    page("http://a/undone", HTML, "Content-Type: text/html\r\nContent-Encoding: gzip"),
    page("http://a/latin", "<p>Grüße & so".encode("latin-1"), "Content-Type: text/html;charset=ISO-8859-1"),
    page("http://a/plain", "Grüße & so".encode(), "Content-Type: text/plain"),
    page("http://a/gone", HTML, status="404 Not Found"),
    page("http://a/picture", b"\x89PNG", "Content-Type: image/png"),
    record("resource", "Grüße & so".encode(), "file:///x.txt", "text/plain"),
    record("conversion", "Grüße & so".encode(), "http://a/wet", "text/plain", "WARC/1.1"),
    record("metadata", b"fetchTimeMs: 1\r\n", "http://a/", "application/warc-fields"),
]
TEXTS = ["", "chunked", "gzip", "deflate", "undone", "latin", "plain"]
NAMES = [*(f"http://a/{name}" for name in TEXTS), "file:///x.txt", "http://a/wet"]


def read(path: Path, data: bytes, reading: ReadingConfig = LENIENT) -> tuple[list[tuple[str, str]], Tally]:
    path.write_bytes(data)
    tally = Tally()
    return [(document.path, document.text) for document in read_source(path, tally, reading)], tally


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz", "x.warc.wet.gz"])
def test_pages_and_texts_of_an_archive_are_documents_under_their_address(tmp_path, name):
    parts = [gzip.compress(one) for one in RECORDS] if name.endswith(".gz") else RECORDS
    found, tally = read(tmp_path / name, b"".join(parts))
    assert found == [(address, "Grüße & so") for address in NAMES]
    assert tally.binary == ["http://a/gone", "http://a/picture"] and not tally.bad.reasons


def test_raw_keeps_the_markup_of_a_page(tmp_path):
    found, _ = read(tmp_path / "x.warc", page("u", HTML), ReadingConfig(html="raw"))
    assert found == [("u", HTML.decode())]


def test_answers_of_careless_servers_are_read(tmp_path):
    bare = b"HTTP/1.1 200 OK\nContent-Type: text/html\n\n<p>a\r\n\r\nb"
    named = page("named", "<p>gęślą".encode("iso8859-2"), "Content-Type: text/html; Charset=ISO-8859-2; x=y")
    found, tally = read(tmp_path / "x.warc", record("response", bare, "bare", "application/http") + named)
    assert found == [("bare", "a b"), ("named", "gęślą")] and not tally.binary


def test_what_is_no_record_is_passed_over_and_told(tmp_path):
    junk = b"WARC/1.0\r\nContent-Length: many\r\n\r\n", b"some junk\nand more\n", b"WARC/1.0\r\nno colon\r\n\r\n"
    data = b"".join(page(f"u{n}", HTML) + piece for n, piece in enumerate(junk)) + page("last", HTML)
    found, tally = read(tmp_path / "x.warc", data)
    assert [name for name, _ in found] == ["u0", "u1", "u2", "last"]
    assert [(row.unit, row.number, row.reason) for row in tally.bad.first] == [
        ("record", number, "not a WARC record") for number in (2, 4, 6)
    ]


def test_an_archive_that_is_cut_off_gives_what_came_before(tmp_path):
    data = b"".join(page(f"u{n}", HTML * 50) for n in range(9))
    for cut in (len(data) - 300, len(data) - 3000, len(data) // 2):
        found, tally = read(tmp_path / "x.warc", data[:cut])
        assert len(found) == cut * 9 // len(data)
        assert tally.bad.reasons.total() == 1 and tally.bad.first[0].reason in ("cut off", "not a WARC record")
    found, tally = read(tmp_path / "x.warc.gz", gzip.compress(data)[:-200])
    assert tally.bad.reasons == {"cut off gzip": 1}


def test_a_record_larger_than_a_document_is_left_out_alone(tmp_path):
    bomb = page("bomb", gzip.compress(bytes(1 << 24)), "Content-Type: text/html\r\nContent-Encoding: gzip")
    data = page("a", HTML) + page("large", b"x" * 500_000) + bomb + page("b", HTML)
    reading = ReadingConfig(max_bad_share=1.0, max_document_bytes=100_000)
    found, tally = read(tmp_path / "x.warc", data, reading)
    assert [name for name, _ in found] == ["a", "b"]
    assert [(row.number, row.reason) for row in tally.bad.first] == [(2, "too large"), (3, "too large")]
    found, _ = read(tmp_path / "x.warc", data)
    assert [name for name, _ in found] == ["a", "large", "b"], "the control: allowed, it is read; zeros are blank"
