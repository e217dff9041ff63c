"""report_tokenizers: the figures, counted again by hand."""

from __future__ import annotations

import json

import pytest

from fledge.errors import ConfigError, DataError
from fledge.text.config import TokenizerReportConfig
from fledge.text.report import report_tokenizers
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
