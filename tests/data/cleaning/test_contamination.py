"""Items of evaluation sets are found where they were planted, and only there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.data.cleaning.check import check_contamination
from fledge.data.cleaning.config import CheckContaminationConfig, ContaminationConfig, MatchConfig
from fledge.data.cleaning.contamination import Contamination, EvaluationSets
from fledge.data.cleaning.evaluation import read_items
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.errors import DataError
from tests.data.folders import essay

QUESTION = "Which of these seven ships was the first that sailed around the whole of the southern continent in winter?"


def jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def grams_by_hand(text: str, n: int) -> set[tuple[str, ...]]:
    words = "".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


def test_real_items_planted_in_real_text_are_all_found_and_near_misses_are_not(tmp_path, data_file):
    """Every tenth question of four benchmarks between paragraphs; the control has each question with every sixth word
    replaced, which leaves no thirteen in a row."""
    planted, misses, wanted = [], [], {}
    prose = [essay(n, 200) for n in range(40)]
    sets = []
    for name, key in (("boolq", "query"), ("hellaswag", "ctx"), ("math_qa", "query"), ("lambada_openai", "context")):
        found = [*data_file("bench_icl").glob(f"{name}.*"), *data_file("bench_hellaswag").glob(f"{name}.*")]
        with gzip.open(found[0], "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file][:400]
        texts = [row.get(key) or max((v for v in row.values() if isinstance(v, str)), key=len) for row in rows]
        texts = [text for text in texts if len(grams_by_hand(text, 13)) > 0]
        path = jsonl(tmp_path / f"{name}.jsonl", [{"question": text} for text in texts])
        sets.append(path)
        chosen = texts[::10]
        planted += chosen
        for text in chosen:
            words = text.split()
            misses.append(" ".join(essay(n, 1) if n % 6 == 5 else word for n, word in enumerate(words)))
        there = set().union(*(grams_by_hand(text, 13) for text in chosen))
        wanted[str(path)] = sum(not there.isdisjoint(grams_by_hand(text, 13)) for text in texts)
    for folder, questions in (("planted", planted), ("missed", misses)):
        rows = [{"text": f"{prose[n % 40]}\n{text.upper()}\n{prose[(n + 1) % 40]}"} for n, text in enumerate(questions)]
        jsonl(tmp_path / f"{folder}.jsonl", rows)
    result = check_contamination(CheckContaminationConfig(tmp_path / "planted.jsonl", tuple(sets)), json=True)
    assert {row["set"]: row["found"] for row in result["evaluations"]} == wanted
    assert result["holding"] == len(planted) > 100
    result = check_contamination(CheckContaminationConfig(tmp_path / "missed.jsonl", tuple(sets)), json=True)
    assert [row["found"] for row in result["evaluations"]] == [0] * 4
    assert result["holding"] == 0


def find(tmp_path, text: str, rows: list[dict], **match) -> dict:
    sets = EvaluationSets((jsonl(tmp_path / "set.jsonl", rows),), MatchConfig(**match))
    sets.see("a", sets.find(text))
    return sets.report(10)[0]


def test_thirteen_words_in_a_row_are_found_and_twelve_are_not(tmp_path):
    words = QUESTION.split()
    around = f"{essay(1, 20)} %s {essay(2, 20)}"
    assert find(tmp_path, around % " ".join(words[2:15]), [{"q": QUESTION}])["found"] == 1
    assert find(tmp_path, around % " ".join(words[2:14]), [{"q": QUESTION}])["found"] == 0
    assert find(tmp_path, around % " ".join(words[2:14]), [{"q": QUESTION}], words=8)["found"] == 1


def test_a_share_of_the_ngrams_is_asked_of_one_document(tmp_path):
    words = QUESTION.split()
    part = " ".join(words[:16])  # 9 of its 12 8-grams
    assert find(tmp_path, part, [{"q": QUESTION}], words=8, least_share=0.7)["found"] == 1
    found = find(tmp_path, " ".join(words[:13]), [{"q": QUESTION}], words=8, least_share=0.7)
    assert (found["found"], found["closest"]) == (0, [])


def test_short_texts_are_found_as_a_whole_or_counted_as_too_short(tmp_path):
    rows = [{"q": "nine words that are all of it here really"}, {"q": "too short", "a": ["to", {"x": "look for"}]}]
    row = find(tmp_path, "now nine words that are all of it here really stand", rows)
    assert (row["items"], row["too_short"], row["found"]) == (2, 1, 1)
    assert row["closest"] == [{"item": 1, "document": "a", "share": 1.0, "share_in_all": 1.0}]
    assert find(tmp_path, "now nine words that are all of it here", rows)["found"] == 0


def test_the_closest_document_holds_the_most(tmp_path):
    sets = EvaluationSets((jsonl(tmp_path / "s.jsonl", [{"q": QUESTION}]),), MatchConfig())
    words = QUESTION.split()
    for path, text in (("less", words[:15]), ("most", words[3:]), ("same", words[3:])):
        sets.see(path, sets.find(" ".join(text)))
    [hit] = sets.report(10)[0]["closest"]
    assert (hit["document"], hit["share_in_all"]) == ("most", 1.0)
    assert 0 < hit["share"] < 1


def contamination(tmp_path, **options) -> Contamination:
    path = jsonl(tmp_path / "set.jsonl", [{"q": QUESTION}])
    return Contamination(ContaminationConfig(evaluations=(path,), **options))


def test_a_document_is_dropped_cut_or_only_told_of(tmp_path):
    before, after = essay(1, 200), essay(2, 200)
    document = Document("a", f"{before} {QUESTION} {after}")
    assert contamination(tmp_path)(document) == Dropped("holds items of set.jsonl")
    assert contamination(tmp_path, action="report")(document) is document
    left = contamination(tmp_path, action="cut")(document)
    assert left.text == f"{before[:-199].strip()}\n\n{after[199 - 1 :].strip()}"
    assert contamination(tmp_path)(Document("b", before)) == Document("b", before)


def test_short_pieces_and_documents_cut_too_often_are_dropped(tmp_path):
    step = contamination(tmp_path, action="cut", window=20, most_pieces=3)
    assert step(Document("a", f"{'x ' * 9}{QUESTION} y")) == Dropped("nothing left beside items of evaluation sets")
    many = Document("a", f" {QUESTION} ".join(essay(n, 30) for n in range(5)))
    assert step(many) == Dropped("items of evaluation sets part it into more than 3 pieces")
    assert isinstance(contamination(tmp_path, action="cut", window=20, most_pieces=5)(many), Document)


def test_phrases_of_many_documents_do_not_count_when_that_is_asked_for(tmp_path):
    step = contamination(tmp_path, frequent=2)
    documents = [Document(str(n), f"{essay(n, 20)} {QUESTION}") for n in range(3)]
    for document in documents:
        step.observe(document)
    step.settle()
    assert step(documents[0]) is documents[0]
    rare = contamination(tmp_path, frequent=3)
    for document in documents:
        rare.observe(document)
    rare.settle()
    assert isinstance(rare(documents[0]), Dropped)  # the control


def test_fields_choose_what_is_looked_for(tmp_path):
    rows = [{"q": essay(1, 20), "a": QUESTION}]
    assert find(tmp_path, QUESTION, rows)["found"] == 1
    assert find(tmp_path, QUESTION, rows, fields=("q",))["found"] == 0


def test_text_is_an_item_a_paragraph_also_when_packed(tmp_path):
    with gzip.open(tmp_path / "set.txt.gz", "wt") as file:
        file.write("one\nstill one\n\n \n\ntwo\n")
    assert [item.texts for item in read_items(tmp_path / "set.txt.gz", MatchConfig())] == [
        ("one\nstill one",),
        ("two\n",),
    ]


def test_every_form_of_rows_has_the_same_items(tmp_path):
    rows = [{"q": QUESTION, "a": "one"}, {"q": essay(1, 20), "a": ["two", {"b": "three"}]}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    zstandard = pytest.importorskip("zstandard")
    array = json.dumps(rows).encode()
    forms = {
        "set.jsonl": lines, "set.ndjson": lines, "set.json": array, "set.jsonl.gz": gzip.compress(lines),
        "set.ndjson.zst": zstandard.compress(lines), "set.json.zst": zstandard.compress(array),
    }  # fmt: skip
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        found = [item.texts for item in read_items(tmp_path / name, MatchConfig())]
        assert found == [(QUESTION, "one"), (essay(1, 20), "two", "three")], name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"q": "x"}\n{torn', "a.jsonl, line 2: not JSON"),
        ("a.jsonl", b"[1]", "line 1: expected an object, got list"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl.gz", b"not packed", "can't be read as an evaluation set"),
        ("a.jsonl.zst", b"not packed", "can't be read as an evaluation set .damaged Zstandard"),
        ("a.txt", b"caf\xe9", "a.txt: expected UTF-8, got another byte at 3"),
        ("a.json", b'{"data": []}', "a.json: expected a list of items, got dict"),
        ("a.json", b'[{"q": "x"}, 5]', "a.json, item 2: expected an object, got int"),
        ("a.parquet", b"PAR1", "expected JSON lines, JSON or text as an evaluation set, got .parquet"),
        ("a.jsonl", b"\n", "expected an evaluation set, got a file without items"),
    ],
)
def test_a_damaged_set_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        EvaluationSets((tmp_path / name,), MatchConfig())


def test_a_key_that_is_not_there_is_named(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"q": "x"}])
    with pytest.raises(DataError, match="line 1: expected the key question, got q"):
        EvaluationSets((path,), MatchConfig(fields=("question",)))


def test_the_verb_tells_what_was_found(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(QUESTION)
    path = jsonl(tmp_path / "set.jsonl", [{"q": QUESTION}, {"q": essay(3, 20)}])
    assert main(["data", "contamination", str(tmp_path / "text.txt"), str(path)]) == 0
    printed = capsys.readouterr().out
    assert "set.jsonl: 1 of 2 items found" in printed
    assert "item 1: 100% in text.txt" in printed
