"""The three verbs on the command line, with what people get wrong at each."""

from __future__ import annotations

import json

import pytest

from fledge.cli.main import main
from tests.label.samples import new_desk, pairs, say, write_rows


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_label_is_a_verb_and_a_group(capsys):
    _, alone, _ = run(capsys, "label", "--help")
    assert alone.startswith("fledge label: a page where people compare two answers")
    _, inner, _ = run(capsys, "label", "export", "--help")
    assert inner.startswith("fledge label export: ")
    code, _, error = run(capsys, "data", "nothing")
    assert code == 2 and "expected one of" in error  # the control: a group without a verb of its name


def test_export_and_report_as_json(tmp_path, capsys):
    desk = new_desk(tmp_path)
    say(desk, "ana", 1, "good")
    desk.store.close()
    place, out = tmp_path / "labels.db", tmp_path / "deep" / "pref.jsonl"
    code, told, _ = run(capsys, "label", "export", place, f"out={out}", "--json")
    assert code == 0 and json.loads(told)["pairs"] == 1 and json.loads(out.read_text())["chosen"] == "Good 1."
    code, told, _ = run(capsys, "label", "report", place, "--json")
    assert code == 0 and json.loads(told)["annotators"]["ana"]["done"] == 1
    assert json.loads(told)["agreement"] == {"pairs": [], "alpha": None}


def test_other_machines_are_warned_of_unless_there_is_a_key(tmp_path, monkeypatch, capsys):
    async def served(app, listener, ready):
        ready()

    monkeypatch.setattr("fledge.label.main.serve", served)
    monkeypatch.delenv("FLEDGE_API_KEY", raising=False)
    rows = write_rows(tmp_path / "pairs.jsonl", [*pairs(2), {"prompt": "x", "answers": ["same", "same"]}])
    words = ["label", rows, f"out={tmp_path / 'labels.db'}", "port=0"]
    code, out, error = run(capsys, *words, "host=0.0.0.0")
    assert code == 0 and "NO API KEY is set" in error and out.startswith("labelling page: http://127.0.0.1:")
    assert "2 pairs to compare; 1 of one answer twice are left out" in error
    code, out, error = run(capsys, *words, "host=0.0.0.0", "api_key=sk-1")
    assert code == 0 and "NO API KEY" not in error and out.endswith("/#key=sk-1\n")
    code, out, error = run(capsys, *words)
    assert code == 0 and "NO API KEY" not in error and "labels.db: 0 votes" in error


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["label", "nothing.jsonl", "out=x.db"], 1, "nothing.jsonl: expected a file of preferences, found none"),
        (["label", "pairs.jsonl"], 2, "out: expected a value, found none"),
        (["label", "pairs.jsonl", "out="], 2, "out: expected a file or postgresql"),
        (["label", "bad.jsonl", "out=x.db"], 1, "bad.jsonl, line 2: not JSON"),
        (["label", "pairs.jsonl", "out=x.db", "port=99999"], 2, "port: expected 0..65535, got 99999"),
        (["label", "pairs.jsonl", "out=x.db", "annotator= "], 2, "annotator: expected a name"),
        (["label", "pairs.jsonl", "out=x.db", "host=no.such.host.invalid"], 2, "can't be listened on"),
        (["label", "pairs.jsonl", "out=x.db", "reasons=[a, a]"], 2, "reasons: expected at most 12, each once"),
        (["label", "pairs.jsonl", "out=pairs.jsonl", "port=0"], 1, "file is not a database"),
        (["label", "pairs.jsonl", "out=pairs.jsonl/x.db", "port=0"], 2, "expected a folder to write to"),
        (["label", "export", "nothing.db", "out=x.jsonl"], 1, "nothing.db: expected what fledge label has written"),
        (["label", "export", "pairs.jsonl", "out=x.jsonl"], 1, "file is not a database"),
        (["label", "export", "labels.db"], 2, "out: expected a value, found none"),
        (["label", "export", "labels.db", "out=x.jsonl", "rule=most"], 2, "rule: expected one of"),
        (["label", "export", "labels.db", "out=x.jsonl", "min_votes=0"], 2, "min_votes: expected at least 1"),
        (["label", "export", "labels.db", "out=x.jsonl"], 1, "expected a pair with a winner, found none of 6"),
        (["label", "report"], 2, "labels: expected a value, found none"),
        (["label", "report", "labels.db", "pairs.jsonl"], 2, "unexpected word 'pairs.jsonl'"),
    ],
)
def test_what_is_wrong_is_one_line_with_place_and_remedy(tmp_path, monkeypatch, capsys, words, code, said):
    new_desk(tmp_path).store.close()
    write_rows(tmp_path / "pairs.jsonl", pairs(40))
    (tmp_path / "bad.jsonl").write_text(json.dumps(pairs(1)[0]) + "\n{\n")
    monkeypatch.chdir(tmp_path)
    before = (tmp_path / "pairs.jsonl").read_bytes()
    got, _, error = run(capsys, *words)
    last = error.splitlines()[-1]
    assert got == code and last.startswith("error: ") and said in last
    assert (tmp_path / "pairs.jsonl").read_bytes() == before and not (tmp_path / "x.jsonl").exists()
