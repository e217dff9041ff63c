"""The visible text of a page: nothing but it, all of it, in time that does not depend on what the page is up to."""

from __future__ import annotations

import html.parser
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.text.config import ReadingConfig
from fledge.text.documents import Tally, read_source
from fledge.text.html_text import html_text

PAGE = """<!DOCTYPE html><html><head><title>Not this</title><style>p { color: "</p>" }</style></head>
<body class="sidebar"><nav><ul><li><a href="/">Home</a><li><a href="/a">About</a></ul></nav>
<header><h1>A &amp; B</h1></header>
<main><p>First <b>bold</b>
  text&nbsp;here<!-- not <p>this</p> -->, it goes on.</p><p hidden>no</p><p style="display: none">no</p>
<script>if (a < b) { document.write("<p>no</p>") }</script>
<p>A <a href="x">link</a> in a sentence.<ul><li>one<li>two <i>and</i> more</ul>
<table><tr><td>x</td><td>1</td></tr><tr><td>y</td><td>2</td></tr></table>
<pre>  def f():
      return 1 &lt; 2
</pre><div class="x share y">Share this</div><div role="navigation">more</div></main>
<ul><li><a href="1">Imprint</a></li><li><a href="2">Contact</a></li><li><a href="3">Jobs</a></li></ul>
<aside>See also</aside><footer>© us</footer></body></html>"""

VISIBLE = """A & B

First bold text here, it goes on.

A link in a sentence.

one
two and more

x\t1
y\t2

  def f():
      return 1 < 2"""


def test_a_page_becomes_what_a_reader_sees_of_it():
    assert html_text(PAGE) == VISIBLE


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("a<br>b<br/>c", "a\nb\nc"),
        ("<p>a<p>b", "a\n\nb"),
        ("1 < 2 & 3 > 2 <3", "1 < 2 & 3 > 2 <3"),
        ("<div>a</span></div>b", "a\n\nb"),
        ('<a title="a > b">x</a>', "x"),
        ("<a title='>' b=\"'>\">x</a>", "x"),
        ("x<!-- <b>", "x"),
        ("x<!---->y<!doctype html>z<?php no ?>!", "xyz!"),
        ("<script>a</script x>b<SCRIPT>c</ScRiPt>d", "bd"),
        ("x<script>never closed", "x"),
        ("<nav>menu</div><p>still menu</nav>text", "text"),
        ("<div><nav>menu</div>text", "text"),
        ("<p class='share'>no<p>yes", "yes"),
        ("<article class='sidebar'>kept</article>", "kept"),
        ("<?xml version='1.0'?><html><script src='x'/><p>kept</p></html>", "kept"),
        ("a&#x26;b&eacute;&unknown;&#99999999;", "a&bé&unknown;\ufffd"),
        ("", ""),
    ],
)
def test_odd_markup_is_read_as_browsers_read_it(page, text):
    assert html_text(page) == text


def test_a_few_links_are_text_and_a_run_of_them_is_a_menu():
    link = "<li><a href='x'>Somewhere</a></li>"
    assert html_text(f"<p>a</p><ul>{link * 2}</ul>") == "a\n\nSomewhere\nSomewhere"
    assert html_text(f"<p>a</p><ul>{link * 3}</ul><p>b</p>") == "a\n\nb"


class Words(html.parser.HTMLParser):
    """Python's own parser, as the measure: the words of all text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found.append(data)


fragments = st.lists(
    st.sampled_from(
        ["<p>", "</p>", "<b>", "</b>", "<div id=a>", "</div>", "<li>", "<td>", "<br/>", "word ", "Größe ", "&lt; ", "x"]
        + ["<!-- note -->", '<a href="?a=1&b=2">', "</a>", "<img alt='>'>", "\n"]
    ),
    max_size=40,
).map("".join)


@given(fragments)
def test_no_word_is_lost_or_made_up(page):
    words = Words()
    words.feed(page)
    words.close()
    found, wanted = html_text(page + "<p>" + "a long last paragraph " * 9), "".join("".join(words.found).split())
    seen = "".join(found.split()).removesuffix("alonglastparagraph" * 9)
    if "<a" not in page:
        assert seen == wanted
    else:
        assert len(seen) <= len(wanted)  # a run of short links may be a menu


HOSTILE = [
    "<",
    "</",
    "<a ",
    '<a b="',
    "<a b='>",
    "<!--",
    "<!",
    "<?",
    "&",
    "&#",
    "<b>",
    "</i>",
    "<b><i></b>",
    "<script>",
]
HOSTILE += ["<a b=\"'>", "<p>", "<a =", "<a = ", "<td hidden>", "<nav>", "\t", "<li><a>", "<a class=x ", "<x/", "<pre>"]


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_page_takes_linear_time(piece):
    """Twice as long, hardly more than twice the time (a quadratic reader takes four times, and minutes)."""
    seconds = []
    for size in (1 << 15, 1 << 16):
        page = piece * (size // len(piece))
        best = 99.0
        for _ in range(2):
            began = time.process_time()
            html_text(page)
            best = min(best, time.process_time() - began)
        seconds.append(best)
    assert seconds[1] < 3.2 * seconds[0] + 0.02 and seconds[1] < 1


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>Größe</p>".encode(), "Größe"),
        ("<meta charset=iso-8859-1><p>Größe</p>".encode("latin-1"), "Größe"),
        ("<p>„Größe“</p>".encode("cp1252"), "„Größe“"),
        (
            '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS"><p>吾輩</p>'.encode("shift_jis"),
            "吾輩",
        ),
        (b"<meta charset=iso-8859-1><p>\x93smart\x94 \x96 \x805</p>", "“smart” – €5"),
        ("<meta charset=gb2312><p>朱镕基</p>".encode("gbk"), "朱镕基"),
        ("<meta charset='x-sjis'><p>①髙</p>".encode("cp932"), "①髙"),
        ("<meta charset=euc-kr><p>똠방각하</p>".encode("cp949"), "똠방각하"),
        ('<?xml version="1.0" encoding="ISO-8859-2"?><p>gęślą</p>'.encode("iso8859-2"), "gęślą"),
        (b"<meta charset=utf-16><p>caf\xe9</p>", "café"),
        (b"<meta charset=rot13><p>abc\xff</p>", "abcÿ"),
        (b"<meta charset=punycode><p>abc\xff</p>", "abcÿ"),
    ],
)
def test_a_page_is_decoded_as_it_says(tmp_path, data, text):
    (tmp_path / "x.html").write_bytes(data)
    assert [d.text for d in read_source(tmp_path / "x.html", Tally())] == [text]
    raw = [d.text for d in read_source(tmp_path / "x.html", Tally(), ReadingConfig(html="raw"))]
    assert "<p>" in raw[0], "the control: raw keeps the markup"
