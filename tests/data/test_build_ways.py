"""Whichever way a dataset comes about, it is the same: in one command or in two, with texts kept or read again. What
stood in its place before is not lost to a mistake in silence.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.data import build as build_module
from fledge.data import corpus as corpus_module
from fledge.data import train_shard
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.shards import open_shards
from fledge.errors import ConfigError, DataError, TokenizerError
from fledge.lineage import sha256_file, verify
from fledge.text.tokenizer import byte_level
from tests.data.folders import essay, held_out_names, make

FILES = {name: essay(n, 200) for n, name in enumerate(held_out_names(False, 30))}
FILES |= {name: essay(n * 9, 200) + essay(70 + n) + " äöü 中文 😀" for n, name in enumerate(held_out_names(True, 3))}
CARDS = ("card.json", "datacard.md")  # they name the folder


@pytest.fixture
def source(tmp_path) -> str:
    return make(tmp_path / "in", FILES)


def content(out: Path) -> dict[str, str]:
    return {
        p.relative_to(out).as_posix(): sha256_file(p) for p in out.rglob("*") if p.is_file() and p.name not in CARDS
    }


@pytest.mark.parametrize("threads", [1, 2])
def test_one_command_gives_the_shards_that_two_give(tmp_path, source, monkeypatch, threads):
    read: list[str | None] = []
    real = build_module.read_corpus
    monkeypatch.setattr(build_module, "read_corpus", lambda out, split=None: (read.append(split), real(out, split))[1])
    build(BuildConfig(tmp_path / "one", source, "bytes", threads=threads), json=True)
    assert read == ["train", "val"]  # that of training is not begun
    build(BuildConfig(tmp_path / "two", source, threads=threads), json=True)
    build(BuildConfig(tmp_path / "two", source, "bytes", threads=threads), json=True)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert {"train.bin", "val.bin", "corpus.jsonl"} <= set(content(tmp_path / "one"))


def test_held_out_texts_that_are_not_kept_are_read_again(tmp_path, source, monkeypatch):
    splits: list[str] = []
    real = corpus_module.wanted
    monkeypatch.setattr(corpus_module, "wanted", lambda c, r, split: (splits.append(split), real(c, r, split))[1])
    build(BuildConfig(tmp_path / "kept", source, "bytes"), json=True)
    assert splits == ["train"]
    monkeypatch.setattr(corpus_module, "FEW_BYTES", 0)
    monkeypatch.setattr(corpus_module, "MOST_KEPT", 0.0)
    build(BuildConfig(tmp_path / "again", source, "bytes"), json=True)
    assert splits == ["train", "val", "train"]
    assert content(tmp_path / "kept") == content(tmp_path / "again")


def test_what_is_tokenised_on_the_way_is_left_where_nothing_can_be_held_out_whole(tmp_path):
    """Every held-out document is a near-duplicate, so tails are held out after all."""
    files = {name: essay(n) for n, name in enumerate(held_out_names(False, 6))}
    files |= {name: essay(n) + " and more" for n, name in enumerate(held_out_names(True, 1))}
    source = make(tmp_path / "in", files)
    result = build(BuildConfig(tmp_path / "one", source, "bytes"), json=True)
    assert result["held_out_by"] == "tail of each document"
    build(BuildConfig(tmp_path / "two", source), json=True)
    build(BuildConfig(tmp_path / "two", source, "bytes"), json=True)
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("change", ["text", "nothing"])
def test_a_damaged_tokenizer_costs_nothing_that_was_there(tmp_path, source, change):
    out, other = tmp_path / "out", tmp_path / "tokenizer"
    build(BuildConfig(out, source, "characters"), json=True)
    before = content(out)
    byte_level().save(other)
    whole = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(whole[: len(whole) // 2])
    if change == "text":
        (Path(source) / held_out_names(False, 31)[-1]).write_text(essay(500, 200))
    with pytest.raises(TokenizerError, match="not usable JSON"):
        build(BuildConfig(out, source, str(other)), json=True)
    assert content(out) == before and verify(out)["kind"] == "dataset"
    (other / "tokenizer.json").write_text(whole)  # the control: a whole one takes the place
    build(BuildConfig(out, source, str(other)), json=True)
    assert content(out) != before


@pytest.mark.parametrize("threads", [1, 2])
def test_a_text_that_can_not_be_tokenised_does_not_cost_the_corpus(tmp_path, source, monkeypatch, threads):
    def failing(texts, *_):
        next(iter(texts)), next(iter(texts))
        raise TokenizerError("text: spells a control token")

    build(BuildConfig(tmp_path / "whole", source, threads=threads), json=True)
    with monkeypatch.context() as patch:
        patch.setattr(train_shard, "write_shard", failing)
        patch.setattr(build_module, "write_shard", failing)
        with pytest.raises(TokenizerError, match="spells a control token"):
            build(BuildConfig(tmp_path / "out", source, "bytes", threads=threads), json=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole") and verify(tmp_path / "out")["kind"] == "corpus"
    assert build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)["reused_corpus"]
    assert open_shards(tmp_path / "out").train.n_documents == 30


def test_a_source_that_fails_midway_leaves_no_corpus(tmp_path, source, monkeypatch):
    """The control of the test before: only what the tokenizer can't do is put off."""

    def cut_off(texts, *_):
        next(iter(texts))
        raise DataError("a file went away")

    monkeypatch.setattr(train_shard, "write_shard", cut_off)
    with pytest.raises(DataError, match="went away"):
        build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    assert not (tmp_path / "out" / "corpus.jsonl").exists() and not (tmp_path / "out" / "card.json").exists()


def test_a_corpus_from_other_sources_is_not_replaced_in_silence(tmp_path, source, capsys):
    other = make(tmp_path / "other", {name: essay(n + 300, 200) for n, name in enumerate(held_out_names(False, 9))})
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    (Path(source) / held_out_names(False, 31)[-1]).write_text(essay(500, 200))
    build(BuildConfig(tmp_path / "out", source, "bytes"), json=True)
    assert "built from" not in capsys.readouterr().err  # the control: other text of the same source
    build(BuildConfig(tmp_path / "out", other, "bytes"), json=True)
    told = f"out: built from {source} before, built anew from {other}; the older is gone"
    assert told in capsys.readouterr().err
    build(BuildConfig(tmp_path / "out", other, "bytes"), json=True)
    assert "built from" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["corpus.jsonl", "documents.jsonl", "train.bin", "val.idx.npy"])
def test_files_of_others_are_not_written_over(tmp_path, source, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"text": "mine"}')
    with pytest.raises(ConfigError, match=f"got one with {name} that data build did not write; choose another"):
        build(BuildConfig(out, source, "bytes"), json=True)
    assert (out / name).read_text() == '{"text": "mine"}' and len(list(out.iterdir())) == 1
    (out / name).rename(out / "mine.txt")
    build(BuildConfig(out, source, "bytes"), json=True)  # the control: beside other names it writes
    assert (out / "mine.txt").read_text() == '{"text": "mine"}' and verify(out)["kind"] == "dataset"


@pytest.mark.parametrize("n_removed", range(len(build_module.OWN) + 1))
def test_a_build_killed_while_it_takes_the_old_one_away_is_mended(tmp_path, source, n_removed):
    build(BuildConfig(tmp_path / "whole", source, "bytes"), json=True)
    out = tmp_path / "out"
    build(BuildConfig(out, source, "characters"), json=True)
    for name in ("card.json", *build_module.OWN[:n_removed]):
        (out / name).unlink()
    build(BuildConfig(out, source, "bytes"), json=True)
    assert content(out) == content(tmp_path / "whole")
