"""What a file, a folder or JSON lines hold as text: one rule for the tokenizer, the corpus and evaluation."""

from __future__ import annotations

import errno
import json
import os

import pytest

from fledge.data.sources import gather
from fledge.errors import ConfigError, DataError
from fledge.text import source_files
from fledge.text.documents import Document, Tally, read_documents, read_source, refuse_inside, total_bytes


def test_the_tokenizer_and_the_corpus_read_the_same_text(tmp_path):
    files = {
        "a/plain.txt": "Grüße 😀".encode(),
        "bom.txt": b"\xef\xbb\xbfmarked\r\n",
        "latin.txt": "Größe und Maß sind hier in Latin-1".encode("latin-1"),
        "noise.txt": bytes(range(128, 256)) * 4,
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0",
        "blank.txt": b" \n",
        ".hidden/a.txt": b"no",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = [(d.path, d.text) for d in read_documents(tmp_path)]
    assert found == [(d.path, d.text) for d in gather(str(tmp_path))]
    assert [path for path, _ in found] == ["a/plain.txt", "bom.txt", "latin.txt"]
    for name in files:
        alone = [d.text for d in gather(str(tmp_path / name))]
        assert [d.text for d in read_documents(tmp_path / name)] == alone


def test_of_a_binary_file_only_the_beginning_is_read(tmp_path):
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 42)  # a hole: four terabytes that take no room on the disk
    tally = Tally()
    assert list(read_source(tmp_path / "huge", tally)) == []
    assert tally.binary == ["huge"]


def test_half_a_character_in_json_lines_is_named_with_its_line(tmp_path):
    rows = [{"text": "fine"}, {"text": "ab\ud800"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for read in (read_documents, lambda path: gather(str(path))):
        with pytest.raises(DataError, match="x.jsonl, line 2: expected Unicode, got a lone surrogate at character 2"):
            list(read(tmp_path / "x.jsonl"))


def test_a_path_with_half_a_character_is_spelled_out(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "fine", "path": "a\udcff"}))
    assert [d.path for d in read_documents(tmp_path / "x.jsonl")] == ["a\\udcff"]


def test_a_file_whose_name_is_not_utf_8_is_read_and_its_bytes_are_counted(tmp_path):
    path = tmp_path / os.fsdecode(b"a\xff.txt")
    try:
        path.write_text("fine")
    except OSError as error:
        if error.errno != errno.EILSEQ:
            raise
        pytest.skip("a file system of Unicode names")
    assert [(d.path, d.text) for d in read_documents(tmp_path)] == [("a\\udcff.txt", "fine")]
    assert total_bytes(tmp_path) == total_bytes(path) == 4 and total_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_file_that_cannot_be_read_is_named(name, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / name).write_text('{"text": "x"}')
    assert list(read_documents(tmp_path / name))
    monkeypatch.setattr(source_files, "open", refuse, raising=False)
    with pytest.raises(DataError, match=f"{name}: can't be read .Permission denied."):
        list(read_documents(tmp_path / name))


def test_links_are_followed_but_for_those_into_themselves(tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    for folder in (source / "inner", elsewhere):
        folder.mkdir(parents=True)
    (source / "inner" / "a.txt").write_text("in the folder")
    (elsewhere / "b.txt").write_text("behind a link")
    (elsewhere / "back").symlink_to(source)
    (source / "linked").symlink_to(elsewhere)
    (source / "inner" / "up").symlink_to(source)
    (source / "file.txt").symlink_to(elsewhere / "b.txt")
    (source / "broken").symlink_to(tmp_path / "nowhere")
    (source / ".hidden").symlink_to(elsewhere)
    assert [document.path for document in read_documents(source)] == ["file.txt", "inner/a.txt", "linked/b.txt"]


def test_what_is_written_must_stand_outside_of_the_text(tmp_path):
    text, corpus = tmp_path / "text", tmp_path / "corpus"
    for folder in (text, corpus, text / "inner"):
        folder.mkdir()
    (text / "a.txt").write_text("x")
    (corpus / "corpus.jsonl").write_text("")
    (tmp_path / "link").symlink_to(text)
    for inside in (text, text / "out", tmp_path / "link" / "out" / "deep", text / "inner" / ".." / "out"):
        with pytest.raises(ConfigError, match="expected a folder outside of the text"):
            refuse_inside(text, inside)
    for source, outside in (
        (text, tmp_path),
        (text, tmp_path / "text-out"),
        (text, text / ".hidden" / "out"),
        (text / "a.txt", text / "out"),
        (corpus, corpus / "tokenizer"),
        (tmp_path / "missing", tmp_path / "missing" / "out"),
    ):
        refuse_inside(source, outside)


def test_a_document_counts_bytes_and_knows_its_domain():
    assert (Document("a/b.txt", "é").n_bytes, Document("a/b.txt", "e").n_bytes) == (2, 1)
    assert (Document("a/b.txt", "").domain, Document("b.txt", "").domain) == ("a", "b.txt")
