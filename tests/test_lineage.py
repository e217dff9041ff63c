"""Cards tell what a folder is made of, by content; damaged ones are refused in one way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from fledge import lineage
from fledge.errors import CheckpointError, ConfigError
from fledge.lineage import (
    CARD,
    artefact_digest,
    check_output_file,
    folder_digest,
    make_folder,
    read_card,
    refuse_other_artefact,
    sha256_file,
    verify,
    write_card,
    write_text_durably,
)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "f" / "inner").mkdir(parents=True)
    (tmp_path / "f" / "a.txt").write_text("a")
    (tmp_path / "f" / "inner" / "b.txt").write_text("b")
    return tmp_path / "f"


def test_a_digest_is_that_of_the_content(folder, tmp_path):
    a, b = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
    card = write_card(folder, "corpus", {"base": "0" * 64}, {"n": 1}, {"documents": 2})
    assert card["files"] == {"a.txt": a, "inner/b.txt": b}
    assert card["digest"] == folder_digest({"inner/b.txt": b, "a.txt": a})
    assert read_card(folder) == card == verify(folder)
    assert artefact_digest(folder) == card["digest"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("a")
    assert write_card(other, "corpus")["digest"] != card["digest"]
    assert artefact_digest(other) == folder_digest({"a.txt": a})


def test_files_named_to_skip_are_none_of_the_card_s_business(folder):
    write_card(folder, "corpus", skip=("a.txt",))
    (folder / "a.txt").write_text("changed")
    assert list(verify(folder)["files"]) == ["inner/b.txt"]


@pytest.mark.parametrize("how", ["changed", "gone", "cut"])
def test_a_damaged_file_is_named(folder, how):
    write_card(folder, "corpus")
    path = folder / "inner" / "b.txt"
    if how == "gone":
        path.unlink()
    else:
        path.write_text("x" if how == "changed" else "")
    with pytest.raises(CheckpointError, match="inner/b.txt: (missing file|expected SHA-256)"):
        verify(folder)


@pytest.mark.parametrize("name", ["../secret.txt", "inner/../../secret.txt", "ABSOLUTE"])
def test_a_card_does_not_lead_out_of_its_folder(folder, name):
    secret = folder.parent / "secret.txt"
    secret.write_text("secret")
    card = write_card(folder, "corpus")
    name = str(secret) if name == "ABSOLUTE" else name
    card["files"] = {name: sha256_file(secret)}
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="points outside the folder"):
        verify(folder)


WHOLE = {"format": 1, "kind": "corpus", "digest": "d", "parents": {}, "files": {}, "facts": {}}
DAMAGED = {
    "empty": "",
    "torn": '{"format": 1, "ki',
    "a list": "[1]",
    "a number": "1",
    "deep": "[" * 100_000,
    "deep inside": '{"format": ' + "[" * 100_000,
    "not UTF-8": b"\xff",
    "a format of the future": '{"format": 99}',
    "a format that is text": json.dumps({**WHOLE, "format": "1"}),
    "files that are a list": json.dumps({**WHOLE, "files": []}),
    "a digest that is a number": json.dumps({**WHOLE, "files": {"a": 1}}),
    "a parent that is none": json.dumps({**WHOLE, "parents": {"a": None}}),
    **{f"no {key}": json.dumps({k: v for k, v in WHOLE.items() if k != key}) for key in WHOLE},
}


def test_the_card_without_damage_is_read(folder):
    (folder / CARD).write_text(json.dumps(WHOLE))
    assert read_card(folder) == WHOLE


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_card_is_refused_in_one_way(folder, name):
    text = DAMAGED[name]
    (folder / CARD).write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_card, verify):
        with pytest.raises(CheckpointError, match=r"card.json: (damaged card|expected format at most 1)"):
            read(folder)


def test_a_missing_card_is_said_to_be_missing(folder):
    with pytest.raises(CheckpointError, match="expected a card, found none"):
        read_card(folder)


def test_text_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text_durably(path, "old ü")
    assert path.read_bytes() == "old ü".encode()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lineage.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text_durably(path, "new")
    assert path.read_text() == "old ü"


def test_text_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    real = {name: getattr(lineage.os, name) for name in ("fsync", "replace")}
    for name in real:
        monkeypatch.setattr(lineage.os, name, lambda *a, name=name: (done.append(name), real[name](*a)))
    write_text_durably(tmp_path / "a.txt", "x")
    assert done == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        lineage.write_text_durably(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_another_kind_of_artefact_is_not_written_over(folder):
    write_card(folder, "dataset")
    before = (folder / "card.json").read_text()
    with pytest.raises(ConfigError, match="expected a folder for tokenizer alone, got one that holds dataset"):
        write_card(folder, "tokenizer")
    assert (folder / "card.json").read_text() == before
    refuse_other_artefact(folder, "corpus", "dataset")  # the control: its own kind
    (folder / "card.json").write_text("{")
    refuse_other_artefact(folder, "tokenizer")


def test_a_file_to_write_is_tried_before_the_work(tmp_path):
    check_output_file(tmp_path / "new" / "a.json")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("x")
    check_output_file(tmp_path / "file")
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="choose another"):
            check_output_file(path)


def test_a_folder_to_write_to_is_made_or_refused(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir() and make_folder(str(tmp_path / "a" / "b")).is_dir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="folder to write to"):
            make_folder(path)
