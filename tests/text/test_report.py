"""report_tokenizers: the figures, counted again by hand."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from fledge.errors import ConfigError, DataError
from fledge.text.config import TokenizerReportConfig
from fledge.text.report import report_tokenizers
from tests.serve.browsing import launched
from tests.text.samples import small_bpe


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts" / "fr").mkdir(parents=True)
    (tmp_path / "texts" / "fr" / "a.txt").write_text("un été à Paris", encoding="utf-8")
    (tmp_path / "texts" / "fr" / "b.txt").write_text("deux", encoding="utf-8")
    (tmp_path / "texts" / "en.txt").write_text("the import of the argument", encoding="utf-8")
    small_bpe().save(tmp_path / "bpe")
    return tmp_path


def test_figures_are_those_counted_by_hand(folder):
    chosen = TokenizerReportConfig(f"{folder / 'bpe'}, bytes", folder / "texts", words=("straw",))
    result = report_tokenizers(chosen, json=True)
    texts = {"fr": ["un été à Paris", "deux"], "en.txt": ["the import of the argument"]}
    whole = sum(texts.values(), [])
    assert result["bytes"] == sum(len(t.encode()) for t in whole) and result["words"] == 10
    bpe, plain = result["tokenizers"]
    n_tokens = sum(len(small_bpe().encode(t)) for t in whole)
    assert bpe["tokens"] == n_tokens and plain["tokens"] == result["bytes"]
    assert bpe["bytes_per_token"] == round(result["bytes"] / n_tokens, 4) and plain["bytes_per_token"] == 1.0
    assert bpe["tokens_per_word"] == round(n_tokens / 10, 4)
    assert bpe["domains"]["fr"]["tokens"] == sum(len(small_bpe().encode(t)) for t in texts["fr"])
    used = {i for t in whole for i in small_bpe().encode(t)}
    assert bpe["unused"] == small_bpe().vocab_size - 7 - len(used)
    assert plain["words"]["straw"] == list("straw") and "".join(bpe["words"]["straw"]) == "straw"
    assert bpe["lossless"] is True
    alone = [word for text in whole for word in text.split()]
    one = [w for w in alone if len(small_bpe().encode(w)) == 1 or len(small_bpe().encode(" " + w)) == 1]
    assert 0 < len(one) < 10 and bpe["single_token_words"] == len(one) / 10
    json.dumps(result)


def test_a_tokenizer_that_loses_text_is_shown_to(folder, tmp_path):
    from fledge.text.tokenizer import characters

    characters("the").save(tmp_path / "few")
    result = report_tokenizers(TokenizerReportConfig(str(tmp_path / "few"), folder / "texts"), json=True)
    assert result["tokenizers"][0]["lossless"] is False


def test_people_get_a_table_with_the_baseline_of_characters(folder, capsys):
    report_tokenizers(TokenizerReportConfig(f"{folder / 'bpe'},bytes", folder / "texts"))
    out = capsys.readouterr().out
    assert "(one token per character)" in out and "'strawberry' is" in out and "fr " in out


def test_nothing_to_measure_is_an_error(folder):
    (folder / "none").mkdir()
    with pytest.raises(DataError, match="expected text to measure on"):
        report_tokenizers(TokenizerReportConfig("bytes", folder / "none"))
    with pytest.raises(ConfigError, match="tokenizer: expected"):
        report_tokenizers(TokenizerReportConfig(" ,", folder / "texts"))


def test_the_page_holds_every_figure_escapes_texts_and_asks_for_nothing(folder):
    """Read back by the standard library's parser, as a reader of the page would see it."""
    out = folder / "deep" / "report.html"
    word = "<img src=x onerror=alert(1)>"
    chosen = TokenizerReportConfig(f"{folder / 'bpe'},bytes", folder / "texts", words=(word, "straw"), out=out)
    result = report_tokenizers(chosen, json=True)
    assert result["out"] == str(out)
    page = Reader()
    page.feed(out.read_text(encoding="utf-8"))
    assert not {"script", "img", "link", "iframe"} & page.tags and "http" not in " ".join(page.values)
    for row in result["tokenizers"]:
        assert f"{row['bytes_per_token']:.3f}" in page.texts and f"{row['unused']:,}" in page.texts
        for domain in row["domains"].values():
            assert {f"{domain['bytes_per_token']:.3f}", f"{domain['tokens_per_word']:.3f}"} <= set(page.texts)
    assert f"\u201c{word}\u201d" in page.texts and {"fr", "en.txt", "bpe", "bytes"} <= set(page.texts)
    with pytest.raises(ConfigError, match="out: expected a file ending in .html"):
        TokenizerReportConfig("bytes", folder, out=folder / "report.pdf")


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts, self.values = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.values += [value or "" for _, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def test_ids_without_a_token_are_not_called_unused(tmp_path):
    tree = json.loads(small_bpe().file.text)
    tree["added_tokens"][-1]["id"] += 5  # leaves a gap
    (tmp_path / "gaps").mkdir()
    (tmp_path / "gaps" / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "t.txt").write_text("abc")
    whole, gaps = (
        report_tokenizers(TokenizerReportConfig(str(path), tmp_path / "t.txt"), json=True)["tokenizers"][0]["unused"]
        for path in (small_bpe().save(tmp_path / "bpe") or tmp_path / "bpe", tmp_path / "gaps")
    )
    assert gaps == whole


def test_the_page_fits_narrow_and_wide_windows_in_dark_and_light(folder):
    out = folder / "report.html"
    report_tokenizers(TokenizerReportConfig(f"{folder / 'bpe'},bytes", folder / "texts", out=out), json=True)
    grounds = set()
    with launched() as browser:
        for width, scheme in ((400, "light"), (1100, "light"), (1100, "dark")):
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            asked: list[str] = []
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(out.as_uri())
            assert asked == [out.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            bars = page.evaluate("[...document.querySelectorAll('table.bars td.bar')].map(x => x.offsetWidth)")
            assert len(bars) == 8 and max(bars) - min(bars) <= 1  # one scale needs columns of one width
            ends = "x => [x.querySelector('i'), x.querySelector('span')].map(y => y.getBoundingClientRect())"
            rows = page.evaluate(f"[...document.querySelectorAll('td.bar')].map({ends})")
            assert all(bar["width"] > 0 and bar["right"] < number["left"] for bar, number in rows)
            grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            page.close()
    assert len(grounds) == 2
