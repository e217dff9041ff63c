"""Votes as preferences: the rule for several annotators, and that training reads them."""

from __future__ import annotations

import json

import pytest

from fledge.errors import ConfigError, DataError
from fledge.label.config import LabelExportConfig
from fledge.label.export import export_labels
from fledge.label.tally import Tally
from fledge.text.conversation import Message
from fledge.text.preferences import read_judged, read_preferences
from tests.label.samples import Ballot, Desk, make_labels, new_desk, read_items, say, write_rows


@pytest.mark.parametrize(
    ("tally", "majority", "unanimous"),
    [
        (Tally(first=1), "winner", "winner"),
        (Tally(second=2), "winner", "winner"),
        (Tally(first=2, second=1), "winner", "no winner"),
        (Tally(first=2, ties=1), "winner", "no winner"),
        (Tally(first=1, second=1), "no winner", "no winner"),
        (Tally(first=1, ties=1), "no winner", "no winner"),
        (Tally(first=2, second=1, ties=1), "no winner", "no winner"),
        (Tally(ties=3), "no winner", "no winner"),
        (Tally(first=2, skips=5), "winner", "winner"),
        (Tally(skips=1), "skipped", "skipped"),
        (Tally(), "not labelled", "not labelled"),
    ],
    ids=str,
)
def test_when_an_answer_wins(tally, majority, unanimous):
    assert tally.outcome("majority", 1) == majority
    assert tally.outcome("unanimous", 1) == unanimous
    assert tally.outcome("majority", 9) != "winner"


def labelled(folder):
    """Six pairs by three people: good by all, bad by two of three, a tie, one against one, skipped, unseen."""
    desk = new_desk(folder)
    verdicts = {1: "good good good", 2: "bad bad good", 3: "tie tie good", 4: "good bad -", 5: "skip - -"}
    for item, said in verdicts.items():
        for name, verdict in zip(("ana", "bo", "cy"), said.split(), strict=True):
            if verdict != "-":
                say(desk, name, item, verdict)
    desk.store.close()
    return str(folder / "labels.db")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_majority_is_written_and_the_rest_counted(tmp_path, capsys):
    out = tmp_path / "pref.jsonl"
    result = export_labels(LabelExportConfig(labelled(tmp_path), out))
    assert rows_of(out) == [
        {"prompt": "Question 1?", "chosen": "Good 1.", "rejected": "Bad 1.",
         "votes": {"chosen": 3, "rejected": 0, "tie": 0, "skip": 0}, "annotators": 3},
        {"prompt": "Question 2?", "chosen": "Bad 2.", "rejected": "Good 2.",
         "votes": {"chosen": 2, "rejected": 1, "tie": 0, "skip": 0}, "annotators": 3},
    ]  # fmt: skip
    assert result["left_out"] == {"no winner": 2, "too few": 0, "skipped": 1, "not labelled": 1}
    assert "2 pairs of 6 by majority; left out: 2 no winner" in capsys.readouterr().out


def test_unanimous_and_min_votes_leave_more_out(tmp_path):
    place, out = labelled(tmp_path), tmp_path / "pref.jsonl"
    assert export_labels(LabelExportConfig(place, out, "unanimous"))["pairs"] == 1
    assert export_labels(LabelExportConfig(place, out, min_votes=3))["left_out"]["too few"] == 1
    with pytest.raises(DataError, match="expected a pair with a winner, found none of 6"):
        export_labels(LabelExportConfig(place, tmp_path / "none.jsonl", min_votes=4))
    assert not (tmp_path / "none.jsonl").exists()


def test_training_reads_what_was_exported_as_it_was_labelled(tmp_path):
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    longer = [
        {"role": "assistant", "content": "A?"},
        {"role": "user", "content": "B"},
        {"role": "assistant", "content": "C"},
    ]
    rows = [
        {"prompt": chat, "answers": ["x", "y"]},
        {"prompt": "a\u2028b\n<script>", "chosen": longer, "rejected": "\n\nHuman: no transcript?"},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    ]
    rows[1]["rejected"] = [{"role": "assistant", "content": "\n\nHuman: no transcript"}]
    items = read_items(write_rows(tmp_path / "pairs.jsonl", rows))
    desk = Desk(make_labels(str(tmp_path / "labels.db"), items, "pairs.jsonl", 1))
    for number, item in enumerate(items.found, 1):
        a = desk.shown("ana", number)["a"]
        first_is_a = tuple(Message(m["role"], m["content"]) for m in a) == item.first
        say(desk, "ana", number, "a" if first_is_a else "b")
    desk.store.close()
    out = tmp_path / "pref.jsonl"
    export_labels(LabelExportConfig(str(tmp_path / "labels.db"), out))
    read = [(pair.prompt, pair.chosen, pair.rejected) for pair in read_preferences(out)]
    assert read == [(item.prompt, item.first, item.second) for item in items.found]
    assert len(list(read_judged(out))) == 6


@pytest.mark.parametrize("name", ["labels.db", "pairs.jsonl", "mine.json", "empty"])
def test_a_file_that_is_no_earlier_export_is_left_as_it_is(name, tmp_path):
    place, out = labelled(tmp_path), tmp_path / name
    if not out.exists():
        out.write_text("[]" if name == "mine.json" else "")
    before = out.read_bytes()
    with pytest.raises(ConfigError, match=f"out: expected a new file or an earlier export, got .*{name}; choose"):
        export_labels(LabelExportConfig(place, out), json=True)
    assert out.read_bytes() == before
    assert export_labels(LabelExportConfig(place, tmp_path / "pref.jsonl"), json=True)["pairs"] == 2
    assert export_labels(LabelExportConfig(place, tmp_path / "pref.jsonl"), json=True)["pairs"] == 2  # over its own


def test_an_export_that_was_labelled_again_is_not_written_over_by_the_votes_on_it(tmp_path):
    first = tmp_path / "pref.jsonl"
    export_labels(LabelExportConfig(labelled(tmp_path), first), json=True)
    before = first.read_bytes()
    desk = Desk(make_labels(str(tmp_path / "again.db"), read_items(first), first.name, 1))
    desk.vote(Ballot("ana", 1, "a", "once", 1.0))
    desk.store.close()
    with pytest.raises(ConfigError, match="expected a new file or an earlier export"):
        export_labels(LabelExportConfig(str(tmp_path / "again.db"), first), json=True)
    assert first.read_bytes() == before
