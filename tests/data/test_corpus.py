"""What is trained on, held out and dropped."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.corpus import read_corpus, read_records
from fledge.errors import ConfigError, DataError
from fledge.lineage import verify
from tests.data.folders import essay, held_out_names, make


@pytest.fixture(scope="module")
def python_build(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("python")
    return out, build(BuildConfig(out), json=True)


def test_the_python_corpus_holds_out_one_document_in_sixteen(python_build):
    out, result = python_build
    records = read_records(out)
    marked = [r for r in records if hashlib.sha256(r.path.encode()).hexdigest().startswith("0")]
    val = [record for record in records if record.split == "val"]
    assert {record.path for record in val} <= {record.path for record in marked}
    assert not [record for record in marked if record.split == "train"]
    assert all(record.bytes >= 4096 for record in val)
    assert sum(record.bytes for record in val) == result["val_bytes"] >= 400_000
    assert result["held_out"] == [record.path for record in val]


def test_held_out_python_text_is_not_in_the_training_text(python_build):
    out, _ = python_build
    lines = {line for document in read_corpus(out, "train") for line in document.text.splitlines() if len(line) > 60}
    for document in read_corpus(out, "val"):
        long = [line for line in document.text.splitlines() if len(line) > 60]
        assert sum(line in lines for line in long) < 0.3 * len(long) + 2, document.path
    trained = next(document for document in read_corpus(out, "train") if document.n_bytes > 50_000)
    assert all(line in lines for line in trained.text.splitlines() if len(line) > 60)  # the measure can tell


def test_corpus_and_documents_tell_the_same(python_build):
    out, result = python_build
    used = [record for record in read_records(out) if record.split != "dropped"]
    found = list(read_corpus(out))
    assert [(r.path, r.bytes, r.sha256) for r in used] == [(d.path, d.n_bytes, d.sha256) for d in found]
    assert verify(out)["facts"]["corpus"]["train_documents"] == result["train_documents"]


def test_near_duplicates_of_training_text_are_dropped_and_named(tmp_path):
    held, trained = held_out_names(True, 3), held_out_names(False, 9)
    files = {name: essay(n) for n, name in enumerate(trained)}
    files[held[0]] = essay(100)
    files[held[1]] = essay(0) + " and one more sentence at the end"
    files[held[2]] = " ".join(essay(n, 300) for n in range(3)) + " " + essay(300, 300)  # three quarters, from three
    source = make(tmp_path / "in", files)
    result = build(BuildConfig(tmp_path / "out", source), json=True)
    assert result["held_out"] == [held[0]]
    assert result["near_duplicates"] == sorted(held[1:])
    by_path = {record.path: record for record in read_records(tmp_path / "out")}
    assert by_path[held[1]].closest == trained[0]
    assert by_path[held[1]].contained > 0.98
    assert by_path[held[2]].contained == pytest.approx(0.75, abs=0.02)
    assert by_path[held[0]].contained == 0
    kept = build(BuildConfig(tmp_path / "all", source, near_duplicate=1.0), json=True)  # the control
    assert kept["val_documents"] == 3


def test_exact_duplicates_and_small_held_out_documents_are_dropped(tmp_path):
    held, trained = held_out_names(True, 2), held_out_names(False, 4)
    files = {name: essay(n) for n, name in enumerate(trained[:3])}
    files |= {trained[3]: essay(1), held[0]: essay(100), held[1]: "too small to say much about"}
    build(BuildConfig(tmp_path / "out", make(tmp_path / "in", files)), json=True)
    dropped = {r.path: r.reason for r in read_records(tmp_path / "out") if r.split == "dropped"}
    assert dropped == {
        max(trained[1], trained[3]): "exact duplicate",
        held[1]: "held out, but below 4096 bytes",
    }
    assert {d.path for d in read_corpus(tmp_path / "out", "val")} == {held[0]}


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_a_few_documents_are_held_out_by_their_tails(tmp_path, fraction):
    files = {name: essay(n) for n, name in enumerate(held_out_names(False, 3))}
    out = tmp_path / "out"
    result = build(BuildConfig(out, make(tmp_path / "in", files), val_fraction=fraction), json=True)
    parts = {split: {d.path: d.text for d in read_corpus(out, split)} for split in ("train", "val")}
    assert {path: parts["train"][path] + parts["val"][path] for path in files} == files
    for path, text in files.items():
        assert len(parts["val"][path]) == pytest.approx(fraction * len(text), abs=1)
    assert result["held_out_by"] == "tail of each document"


def test_a_document_that_is_everything_is_not_held_out_whole(tmp_path):
    [name] = held_out_names(True, 1)
    result = build(BuildConfig(tmp_path / "out", make(tmp_path / "in", {name: essay(1)})), json=True)
    assert (result["train_documents"], result["val_documents"]) == (1, 1)


def test_tinyshakespeare_is_split_as_nanogpt_splits_it(tmp_path, data_file):
    source = data_file("text_tinyshakespeare") / "input.txt"
    build(BuildConfig(tmp_path, str(source)), json=True)
    text = source.read_text(encoding="utf-8")
    [train], [val] = list(read_corpus(tmp_path, "train")), list(read_corpus(tmp_path, "val"))
    assert (len(train.text), len(val.text)) == (1_003_854, 111_540)
    assert train.text == text[: int(len(text) * 0.9)]
    assert train.text + val.text == text
    assert train.path == val.path == "input.txt"


def test_a_source_without_text_is_refused(tmp_path):
    make(tmp_path / "in", {"blank.txt": "  \n"})
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG\0\0")
    with pytest.raises(DataError, match="1 binary and 1 empty"):
        build(BuildConfig(tmp_path / "out", str(tmp_path / "in")), json=True)
    assert not (tmp_path / "out" / "card.json").exists()


def test_a_damaged_corpus_names_file_and_line(tmp_path):
    rows = [json.dumps({"path": "a", "text": "x", "split": "train"}), "{torn"]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=r"corpus.jsonl, line 2"):
        list(read_corpus(tmp_path))


@pytest.mark.parametrize(
    "wrong", [{"val_fraction": 1.0}, {"val_fraction": -0.1}, {"near_duplicate": 0.0}, {"minimum_eval_bytes": -1}]
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BuildConfig(Path("x"), **wrong)
