"""What is gathered as text, from a folder and from the Python installation."""

from __future__ import annotations

import hashlib
import json
import sysconfig
from pathlib import Path

import pytest

from fledge.data.build import from_text_path
from fledge.data.document import is_held_out
from fledge.data.sources import gather
from fledge.errors import DataError
from fledge.text.documents import Tally


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)


def test_a_folder_gives_its_text_files_in_order_and_counts_the_rest(tmp_path):
    write(
        tmp_path,
        {
            "b.md": b"# two\r\n",
            "a/z.txt": "Grüße 😀".encode(),
            "a/page.html": b"<p>what is <b>seen</b></p>",
            "bom.txt": b"\xef\xbb\xbfmarked",
            "latin.txt": "Größe und Maß sind hier in Latin-1".encode("latin-1"),
            "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "noise.txt": bytes(range(128, 256)) * 4,
            "blank.txt": b" \n\t",
            ".hidden/secret.txt": b"no",
            ".env": b"no",
        },
    )
    tally = Tally()
    found = {document.path: document.text for document in gather(str(tmp_path), tally)}
    assert list(found) == ["a/page.html", "a/z.txt", "b.md", "bom.txt", "latin.txt"]
    assert found["a/page.html"] == "what is seen"
    assert found["b.md"] == "# two\r\n"
    assert found["a/z.txt"] == "Grüße 😀"
    assert found["bom.txt"] == "marked"
    assert found["latin.txt"].startswith("Gr\ufffd\ufffde")
    assert tally == Tally(replaced=["latin.txt"], binary=["noise.txt", "picture.png"], empty=["blank.txt"])


def test_a_file_is_one_document_under_its_name(tmp_path):
    write(tmp_path, {"input.txt": b"text"})
    assert [(d.path, d.text, d.n_bytes) for d in gather(str(tmp_path / "input.txt"))] == [("input.txt", "text", 4)]


def test_json_lines_are_a_document_a_line(tmp_path):
    rows = [{"text": "first"}, {"text": "second", "path": "a"}, {"text": "third", "path": "a"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [(d.path, d.text) for d in gather(str(tmp_path / "x.jsonl"))]
    assert found == [("x:1", "first"), ("a", "second"), ("a#2", "third")]


def test_no_two_documents_have_one_path(tmp_path):
    rows = [{"text": str(number), "path": path} for number, path in enumerate(["a", "a#2", "a", "a", "a#2"])]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [d.path for d in gather(str(tmp_path / "x.jsonl"))]
    assert len(set(paths)) == 5 and paths[:2] == ["a", "a#2"]


def test_a_corpus_is_not_read_as_text(tmp_path):
    """Its JSON would be trained on as text, the held-out documents too."""
    write(tmp_path, {"corpus.jsonl": b'{"path": "a", "text": "held out", "split": "val"}\n'})
    with pytest.raises(DataError, match="a corpus without shards.*fledge data build with --out .* --tokenizer"):
        list(gather(str(tmp_path)))
    with pytest.raises(DataError, match="a corpus without shards"):
        from_text_path(tmp_path, "bytes", 0.1, tmp_path.parent / "out")


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: expected a folder or file"):
        gather(str(tmp_path / "nowhere"))


def test_a_file_name_that_is_no_text_can_be_hashed_and_written(tmp_path):
    (tmp_path / b"a\xff.txt".decode("utf-8", "surrogateescape")).write_bytes(b"text")
    [document] = gather(str(tmp_path))
    assert document.path.encode() == b"a\\udcff.txt"
    is_held_out(document.path)


@pytest.fixture(scope="module")
def python_corpus() -> dict[str, str]:
    return {document.path: document.text for document in gather("python")}


def test_the_python_corpus_is_help_topics_and_library_sources(python_corpus):
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_paths()["stdlib"])
    assert python_corpus["topics/if.txt"] == topics["if"]
    assert python_corpus["sources/textwrap.py"] == (library / "textwrap.py").read_text(encoding="utf-8")
    assert all(path.startswith(("topics/", "sources/")) for path in python_corpus)
    assert sum(len(text) for text in python_corpus.values()) > 6_000_000


def test_the_python_corpus_has_no_tests_packages_tables_or_machine_files(python_corpus):
    unwanted = ("test", "tests", "site-packages", "dist-packages", "__pycache__", "pydoc_data", "idle_test")
    assert [path for path in python_corpus if set(path.split("/")) & set(unwanted)] == []
    assert [path for path in python_corpus if "sysconfigdata" in path or "/config-" in path] == []
    assert "sources/encodings/cp1252.py" not in python_corpus
    assert "sources/encodings/aliases.py" in python_corpus


def test_the_python_corpus_is_the_same_each_time(python_corpus):
    assert [(d.path, d.text) for d in gather("python")] == list(python_corpus.items())


def test_one_path_in_sixteen_is_held_out():
    paths = [f"folder/{number}.txt" for number in range(4096)]
    assert [is_held_out(path) for path in paths] == [hashlib.sha256(p.encode()).digest()[0] < 16 for p in paths]
    assert 200 < sum(map(is_held_out, paths)) < 312  # 256 ± 3.6 deviations
