"""A corpus from every form of source: compressed, several, with bad rows, damaged; told, bounded and built once."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from fledge.cli.main import main
from fledge.data.build import build
from fledge.data.config import BuildConfig
from fledge.data.corpus import read_corpus, read_records
from fledge.data.sources import gather
from fledge.errors import ConfigError, DataError
from fledge.lineage import verify
from fledge.text.config import ReadingConfig
from tests.data.folders import essay, held_out_names, make

NAMES = [*held_out_names(False, 7), *held_out_names(True, 1)]
FILES = {name: essay(n) for n, name in enumerate(NAMES)}


def digest(out: Path, *sources: Path | str, tokenizer: str | None = "bytes", **options) -> str:
    named = tuple(str(source) for source in sources)
    config = BuildConfig(out, named[0] if len(named) == 1 else named, tokenizer, **options)
    return build(config, json=True)["digest"]


def test_a_compressed_folder_gives_the_same_corpus(tmp_path):
    make(tmp_path / "plain", FILES)
    for folder, ending, pack in (("gz", ".gz", gzip.compress), ("zst", ".zst", zstandard.compress)):
        (tmp_path / folder).mkdir()
        for name, text in FILES.items():
            (tmp_path / folder / f"{name}{ending}").write_bytes(pack(text.encode()))
    digests = {digest(tmp_path / f"out-{name}", tmp_path / name) for name in ("plain", "gz", "zst")}
    assert len(digests) == 1
    (tmp_path / "gz" / f"{NAMES[0]}.gz").write_bytes(gzip.compress(b"another text"))
    assert digest(tmp_path / "out-gz", tmp_path / "gz") not in digests, "the control"


def test_several_sources_are_one_corpus(tmp_path):
    first, second = make(tmp_path / "a", FILES), tmp_path / "b.jsonl"
    rows = [{"text": essay(100), "path": NAMES[0]}, {"text": FILES[NAMES[1]]}, {"text": essay(101)}]
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    alone = {record.path: record.split for record in records(tmp_path / "alone", first)}
    both = {record.path: record for record in records(tmp_path / "both", first, second)}
    assert {path: both[path].split for path in alone} == alone, "a further source changes nothing about the first"
    assert both[f"{NAMES[0]}#2"].sha256 != both[NAMES[0]].sha256
    assert (both["b:2"].reason, both["b:2"].closest) == ("exact duplicate", NAMES[1])
    assert {both[path].source for path in alone} == {0} and both["b:3"].source == 1
    sources = verify(tmp_path / "both")["facts"]["corpus"]["sources"]
    assert [(row["name"], row["documents"]) for row in sources] == [(first, 8), (str(second), 3)]
    assert sources[0]["digest"] != sources[1]["digest"]


def test_a_row_whose_path_is_empty_is_named_by_its_line(tmp_path):
    """A corpus that held a document without a name could not be read again."""
    rows = [{"text": essay(1), "path": ""}, {"text": essay(2), "path": "named"}, {"text": essay(3), "path": ""}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert digest(tmp_path / "out", tmp_path / "x.jsonl") == digest(tmp_path / "out", tmp_path / "x.jsonl")
    assert {record.path for record in read_records(tmp_path / "out")} == {"x:1", "named", "x:3"}


def records(out: Path, *sources):
    digest(out, *sources)
    return read_records(out)


def test_several_sources_can_be_named_on_the_command_line(tmp_path, capsys):
    first, second = make(tmp_path / "a", {NAMES[0]: essay(0)}), make(tmp_path / "b", {NAMES[1]: essay(1)})
    words = ["data", "build", "--source", first, "--source", second, "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)["sources"]] == [first, second]
    assert main(["data", "build", f"source=[{first}, {second}]", "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused_corpus"] is True
    with pytest.raises(ConfigError, match="source: expected at least one"):
        BuildConfig(tmp_path, ())


def bad_lines(path: Path, n: int, every: int) -> Path:
    rows = ["{torn" if i % every == every - 1 else json.dumps({"text": f"{i} {essay(i, 80)}"}) for i in range(n)]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_bad_rows_are_kept_aside_counted_and_told(tmp_path, capsys):
    out = tmp_path / "out"
    config = BuildConfig(out, str(bad_lines(tmp_path / "x.jsonl", 100, 25)), "bytes")
    build(config)
    assert "bad rows  4: not JSON (quarantine.jsonl)" in capsys.readouterr().out
    rows = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in rows] == [25, 50, 75, 100] and rows[0]["begins"] == "{torn\n"
    assert verify(out)["facts"]["corpus"]["bad_rows"] == {"not JSON": 4}
    assert "left out, bad rows (not JSON): 4" in (out / "datacard.md").read_text()
    assert len(list(read_corpus(out, "train"))) == 96
    again = build(config, json=True)
    assert again["reused_corpus"] and again["reused_shards"] and again["bad_rows"] == {"not JSON": 4}
    bad_lines(tmp_path / "x.jsonl", 100, 1000)
    build(config, json=True)
    assert not (out / "quarantine.jsonl").exists(), "of a mended source nothing is kept aside"


def test_too_many_bad_rows_end_the_build_and_are_all_told(tmp_path):
    source, out = bad_lines(tmp_path / "x.jsonl", 100, 10), tmp_path / "out"
    with pytest.raises(DataError, match=r"x.jsonl, line 10: not JSON.*10 of 100 rows are bad.*told in .*quarantine"):
        digest(out, source)
    assert not (out / "card.json").exists()
    assert len((out / "quarantine.jsonl").read_text().splitlines()) == 10
    digest(out, source, reading=ReadingConfig(max_bad_share=0.1))
    assert verify(out)["facts"]["corpus"]["bad_rows"] == {"not JSON": 10}


def test_a_build_that_fails_leaves_the_folder_as_it_was(tmp_path):
    source, out = bad_lines(tmp_path / "x.jsonl", 100, 1000), tmp_path / "out"
    before = digest(out, source)
    bad_lines(source, 100, 2)
    with pytest.raises(DataError, match="50 of 100"):
        digest(out, source)
    assert verify(out)["digest"] == before


def test_one_damaged_file_among_many_costs_its_end_alone(tmp_path):
    folder = tmp_path / "in"
    make(folder, {f"{n}.txt": essay(n, 200) for n in range(30)})
    data = gzip.compress(essay(99, 4000).encode())
    (folder / "cut.txt.gz").write_bytes(data[: len(data) // 2])
    digest(tmp_path / "out", folder)
    [row] = map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    assert (row["file"], row["byte"], row["reason"]) == (str(folder / "cut.txt.gz"), len(data) // 2, "cut off gzip")
    found = "".join(d.text for d in read_corpus(tmp_path / "out") if d.path == "cut.txt")
    assert essay(99, 4000).startswith(found) and len(found) > 5000


@pytest.mark.parametrize("reading", [{"html": "raw"}, {"max_document_bytes": 99_000}, {"text_field": "body"}])
def test_other_reading_is_another_corpus_and_equal_reading_is_reused(tmp_path, reading):
    source, out = make(tmp_path / "in", {**FILES, "page.html": "<p>seen</p>", "x.jsonl": ""}), tmp_path / "out"
    for options, reused in (({}, False), ({}, True), (reading, False), (reading, True), ({}, False)):
        config = BuildConfig(out, source, reading=ReadingConfig(max_bad_share=1.0, **options))
        assert build(config, json=True)["reused_corpus"] is reused
    rows = {document.path: document.text for document in read_corpus(out)}
    assert rows["page.html"] == "seen"


def test_any_number_of_threads_gives_the_same_dataset(tmp_path):
    files = {f"{n}.txt": essay(n, 300) + " äöü 中文" for n in range(60)}
    source = make(tmp_path / "in", files)
    assert len({digest(tmp_path / f"out{n}", source, threads=n) for n in (1, 3)}) == 1


def test_the_data_card_tells_how_to_make_the_folder_again(tmp_path):
    import shlex

    source, out = make(tmp_path / "in put", FILES), tmp_path / "out"
    build(BuildConfig(out, source, "bytes", val_fraction=0.2, licence="CC0-1.0"), json=True)
    text = (out / "datacard.md").read_text()
    card = verify(out)
    for wanted in ("Licence: CC0-1.0", card["digest"], card["parents"]["tokenizer"][:16], "8 |"):
        assert wanted in text
    [line] = [line for line in text.splitlines() if line.startswith("fledge data build")]
    (out / "card.json").unlink()
    assert main([*shlex.split(line)[1:], "--json"]) == 0
    assert verify(out)["digest"] == card["digest"] and (out / "datacard.md").read_text() == text
    build(BuildConfig(out, source, "bytes", val_fraction=0.2, licence="CC-BY-4.0"), json=True)
    assert "CC-BY-4.0" in (out / "datacard.md").read_text() and verify(out)["config"]["licence"] == "CC-BY-4.0"


def test_memory_holds_a_small_part_of_a_large_source(tmp_path):
    with gzip.open(tmp_path / "x.jsonl.gz", "wt", compresslevel=1) as file:
        for n in range(3000):
            file.write(json.dumps({"text": f"{n} " + "some words of a text, " * 130}) + "\n")
    n_bytes = sum(document.n_bytes for document in gather(str(tmp_path / "x.jsonl.gz")))

    def peak(work) -> int:
        tracemalloc.start()
        kept = work()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        del kept
        return found

    config = BuildConfig(tmp_path / "out", str(tmp_path / "x.jsonl.gz"), "bytes", threads=1)
    built = peak(lambda: build(config, json=True))
    assert n_bytes > 8 << 20
    whole = peak(lambda: list(gather(str(tmp_path / "x.jsonl.gz"))))
    assert whole > n_bytes, "the control: that is what it takes to hold the source"
    fixed = peak(lambda: build(BuildConfig(tmp_path / "small", make(tmp_path / "s", FILES), "bytes"), json=True))
    assert built - fixed < 0.6 * n_bytes


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_of_rows_without_a_row_is_an_empty_file(tmp_path, content):
    empty, one = tmp_path / "rows.jsonl", tmp_path / "one.jsonl"
    empty.write_text(content)
    with pytest.raises(DataError, match="expected text, found none \\(0 binary and 1 empty files\\)"):
        digest(tmp_path / "out", empty)
    one.write_text(json.dumps({"text": essay(1)}) + "\n")
    digest(tmp_path / "both", empty, one)
    assert verify(tmp_path / "both")["facts"]["corpus"]["empty_files"] == 1
    digest(tmp_path / "whole", one)
    assert verify(tmp_path / "whole")["facts"]["corpus"]["empty_files"] == 0  # the control
