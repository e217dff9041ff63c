"""Whichever way a dataset comes about, it is the same: in one command or in two, with texts kept or read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.data import build as build_module
from fledge.data import corpus as corpus_module
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.lineage import sha256_file
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
