"""Rows: JSON lines, Parquet and Arrow; bad ones are told by file, place and reason, and end nothing by themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from fledge.data.sources import gather
from fledge.errors import ConfigError, DataError
from fledge.text.bad_rows import BadRows
from fledge.text.config import ReadingConfig
from fledge.text.documents import Tally, read_documents, read_source

LENIENT = ReadingConfig(max_bad_share=1.0)
SAVED = Path(__file__).parent / "saved_dataset"  # written by datasets 5.2.0's DatasetDict.save_to_disk


def texts(path: Path, reading: ReadingConfig = LENIENT, tally: Tally | None = None) -> list[str]:
    return [document.text for document in read_source(path, tally or Tally(), reading)]


def test_every_sort_of_bad_line_is_told_with_its_number_and_reason(tmp_path):
    good = json.dumps({"text": "good"}).encode()
    bad = {
        2: (b"{torn", "not JSON"),
        4: (b'{"text": "\xff"}', "not UTF-8"),
        5: (b'{"text": "a\\ud800"}', "lone surrogate"),
        6: (b'{"body": "x"}', "no text under text"),
        7: (b'{"text": null}', "no text under text"),
        8: (b'["text"]', "no text under text"),
        9: (b"[" * 100_000, "too large"),
        11: (b"[" * 9_000, "not JSON"),
        13: (b'{"text": 1}', "no text under text"),
    }
    data = b"".join(bad.get(number, (good,))[0] + b"\n" for number in range(1, 14))
    (tmp_path / "x.jsonl").write_bytes(data + b"\n\n" + good)
    reading = ReadingConfig(max_bad_share=1.0, max_document_bytes=10_000)
    with open(tmp_path / "quarantine.jsonl", "w", encoding="utf-8") as file:
        tally = Tally(bad=BadRows(file))
        found = texts(tmp_path / "x.jsonl", reading, tally)
    assert found == ["good"] * 5 and tally.n_rows == 5
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["line"]: row["reason"] for row in rows} == {number: reason for number, (_, reason) in bad.items()}
    assert all(row["file"] == str(tmp_path / "x.jsonl") and len(row["begins"]) <= 200 for row in rows)
    assert rows[0]["begins"] == "{torn\n" and rows[6]["begins"] == "[" * 200


def test_more_bad_rows_than_allowed_are_an_error_that_names_the_first(tmp_path):
    rows = ["{}" if n % 10 == 3 else '{"text": "x"}' for n in range(100)]
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    message = r"x.jsonl, line 4: .* \| .*line 14: .* \| .*line 24: .* and 7 more; 10 of 100 rows are bad"
    for read in (read_documents, lambda path: gather(str(path))):
        with pytest.raises(DataError, match=message):
            list(read(tmp_path / "x.jsonl"))
    assert len(texts(tmp_path / "x.jsonl", ReadingConfig(max_bad_share=0.1))) == 90
    with pytest.raises(DataError, match="10 of 100"):
        texts(tmp_path / "x.jsonl", ReadingConfig(max_bad_share=0.0999))


def test_one_bad_source_is_not_hidden_by_a_large_good_one(tmp_path):
    (tmp_path / "good.jsonl").write_text('{"text": "x"}\n' * 1000)
    (tmp_path / "bad.jsonl").write_text('{"body": "x"}\n' * 10)
    with pytest.raises(DataError, match="bad.jsonl, line 1: expected an object with a text under `text`, got the keys"):
        list(gather([str(tmp_path / "good.jsonl"), str(tmp_path / "bad.jsonl")]))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"body": "x"}, "body"),
        ({"message": {"content": "x"}}, "message.content"),
        ({"turns": [{"text": "no"}, {"text": "x"}]}, "turns.1.text"),
        ({"message.content": "x", "message": {"content": "no"}}, "message.content"),
    ],
)
def test_the_text_stands_where_text_field_says(tmp_path, row, field):
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert texts(tmp_path / "x.jsonl", ReadingConfig(text_field=field)) == ["x"]
    with pytest.raises(DataError, match="expected an object with a text"):
        texts(tmp_path / "x.jsonl", ReadingConfig(text_field=f"{field}.none"))


def test_json_lines_in_a_folder_are_read_as_rows(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jsonl").write_text('{"text": "one"}\n{"text": "two", "path": "named"}\n')
    (tmp_path / "b.txt").write_text("three")
    found = [(d.path, d.text) for d in read_source(tmp_path, Tally())]
    assert found == [("a/x:1", "one"), ("named", "two"), ("b.txt", "three")]


def test_a_column_of_parquet_is_read_row_by_row(tmp_path):
    rows = [f"row {n} äöü" for n in range(500)]
    table = pyarrow.table({"id": list(range(500)), "text": rows, "meta": [{"body": f"b{n}"} for n in range(500)]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=70, compression="zstd")
    assert texts(tmp_path / "x.parquet") == rows
    assert texts(tmp_path / "x.parquet", ReadingConfig(text_field="meta.body")) == [f"b{n}" for n in range(500)]
    assert [d.path for d in read_source(tmp_path, Tally())][:2] == ["x:1", "x:2"]
    with pytest.raises(DataError, match="row 1: expected a column nothing, got id, text, meta"):
        texts(tmp_path / "x.parquet", ReadingConfig(text_field="nothing"))


def test_arrow_is_read_in_both_its_forms(tmp_path):
    table = pyarrow.table({"text": [f"row {n}" for n in range(500)]})
    for make in (pyarrow.ipc.new_stream, pyarrow.ipc.new_file):
        with pyarrow.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=70)
        assert texts(tmp_path / "x.arrow") == [f"row {n}" for n in range(500)]
    data = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(data[:-300])
    tally = Tally()
    assert texts(tmp_path / "x.arrow", LENIENT, tally) == [] and tally.bad.reasons == {"damaged arrow": 1}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_whose_own_name_has_dots_comes_first(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    for columns in ({"a.b": ["x"]}, {"a": [{"b": "no"}], "a.b": ["x"]}, {"a": [{"b": "x"}]}):
        table = pyarrow.table(columns)
        if kind == "parquet":
            parquet.write_table(table, path)
        else:
            with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
        assert texts(path, ReadingConfig(text_field="a.b")) == ["x"]


def test_bad_rows_of_a_table_are_told_by_number(tmp_path):
    table = pyarrow.table({"text": ["one", None, "x" * 2000, "four"]})
    parquet.write_table(table, tmp_path / "x.parquet")
    tally = Tally()
    assert texts(tmp_path / "x.parquet", ReadingConfig(max_bad_share=1.0, max_document_bytes=1000), tally) == [
        "one",
        "four",
    ]
    assert [(row.unit, row.number, row.reason) for row in tally.bad.first] == [
        ("row", 2, "no text under text"),
        ("row", 3, "too large"),
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_damaged_table_is_one_bad_row(tmp_path, kind):
    table = pyarrow.table({"text": [f"{n} " * 50 for n in range(3000)]})
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        parquet.write_table(table, path, row_group_size=300)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=300)
    assert len(texts(path)) == 3000
    data = path.read_bytes()
    path.write_bytes(data[:-500] if kind == "parquet" else data[: len(data) // 2])
    tally = Tally()
    found = texts(path, LENIENT, tally)
    assert len(found) == 0 if kind == "parquet" else 1000 < len(found) < 2000
    assert [(row.reason, row.number) for row in tally.bad.first] == [(f"damaged {kind}", len(found) + 1)]


def test_a_table_that_lies_about_its_size_is_refused(tmp_path):
    path = tmp_path / "x.arrow"
    path.write_bytes(b"\xff\xff\xff\xff" + (2**31 - 8).to_bytes(4, "little") + b"x" * 100)
    tally = Tally()
    assert texts(path, LENIENT, tally) == []
    assert tally.bad.reasons == {"damaged arrow": 1}


def test_a_repeated_giant_of_parquet_is_refused_before_it_is_unpacked(tmp_path):
    table = pyarrow.table({"text": ["a" * (300 << 20)]})
    parquet.write_table(table, tmp_path / "x.parquet", compression="zstd", use_dictionary=False, write_statistics=False)
    tally = Tally()
    assert texts(tmp_path / "x.parquet", LENIENT, tally) == []
    assert "bytes would become 3145" in tally.bad.first[0].detail


def test_a_folder_saved_by_hugging_face_datasets_is_read(tmp_path):
    tally = Tally()
    found = [(d.path, d.text) for d in read_source(SAVED, tally, LENIENT)]
    assert found == [
        ("test/data-00000-of-00001:1", "held out by its maker"),
        ("train/data-00000-of-00001:1", "Der erste Text."),
        ("train/data-00000-of-00001:2", "The second, with an emoji 😀."),
    ]
    assert [row.number for row in tally.bad.first] == [3]
    assert len(texts(SAVED / "train")) == 2


@pytest.mark.parametrize("missing", ["pyarrow", "zstandard", "fsspec"])
def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch, missing):
    import sys

    parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "x.parquet")
    (tmp_path / "x.txt.zst").write_bytes(b"x")
    source = {"pyarrow": "x.parquet", "zstandard": "x.txt.zst"}.get(missing)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"expected the package {missing}.*pip install fledge\[data\]"):
        list(read_source(tmp_path / source if source else "memory://x", Tally()))


def test_an_address_is_read_like_a_folder(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    files = {"a.txt": b"one", "deep/b.jsonl": b'{"text": "two"}\n', ".hidden": b"no", "c.html": b"<p>three</p>"}
    for name, data in files.items():
        memory.pipe(f"/corpus/{name}", data)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    try:
        wanted = [("a.txt", "one"), ("c.html", "three"), ("deep/b:1", "two")]
        for source in ("memory://corpus", "memory:///corpus/", f"file://{tmp_path}", str(tmp_path)):
            assert [(d.path, d.text) for d in gather(source)] == wanted
        assert [(d.path, d.text) for d in gather("memory://corpus/a.txt")] == [("a.txt", "one")]
        with pytest.raises(DataError, match="memory://nowhere: expected a file or a folder"):
            list(gather("memory://nowhere"))
        with pytest.raises(ConfigError, match="nosuch://x: no package for such an address"):
            list(gather("nosuch://x"))
    finally:
        memory.rm("/corpus", recursive=True)
