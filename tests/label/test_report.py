"""Figures of a labelling, against counts by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from fledge.label.config import LabelReportConfig
from fledge.label.report import figures, report_labels
from tests.label.samples import Desk, make_labels, new_desk, read_items, say, write_rows


def test_progress_agreement_and_place(tmp_path, capsys):
    desk = new_desk(tmp_path, 12)
    for item in range(1, 13):
        say(desk, "ana", item, "good" if item <= 8 else "bad", seconds=item)
        if item <= 10:
            say(desk, "bo", item, "good" if item <= 6 else "tie" if item == 7 else "bad", seconds=2)
    say(desk, "cy", 1, "skip")
    found = report_labels(LabelReportConfig(str(tmp_path / "labels.db")))
    ana, bo, cy = (found["annotators"][name] for name in ("ana", "bo", "cy"))
    assert (ana["done"], ana["left"], ana["preferred"], ana["seconds_median"]) == (12, 0, 12, 6.5)
    assert (bo["done"], bo["left"], bo["ties"], bo["preferred"]) == (10, 2, 1, 9)
    assert (cy["done"], cy["skipped"], cy["preferred"], cy["first_shown"]) == (1, 1, 0, None)
    pair = found["agreement"]["pairs"][0]
    assert pair["annotators"] == ["ana", "bo"] and pair["n"] == 10
    assert pair["same"]["value"] == 0.8
    expected = 0.5 * 0.45 + 0.5 * 0.45  # ana: 8 good, 2 bad; bo: 6 good, 3 bad, 1 tie; in either order
    assert pair["kappa"]["value"] == pytest.approx((0.8 - expected) / (1 - expected))
    assert [p["n"] for p in found["agreement"]["pairs"][1:]] == [0, 0]  # a skip is no judgement
    assert [p["kappa"] for p in found["agreement"]["pairs"][1:]] == [None, None]
    assert found["agreement"]["alpha"]["n"] == 10
    left = sum(desk.shown("ana", item)["a"][0]["content"].startswith("Good") == (item <= 8) for item in range(1, 13))
    assert ana["first_shown"]["value"] == pytest.approx(left / 12) and ana["first_shown"]["n"] == 12
    assert (found["with_file"]["value"], found["with_file"]["n"]) == (14 / 21, 21)
    told = capsys.readouterr().out
    assert "23 votes on 12 pairs of pairs.jsonl" in told
    assert "Krippendorff's alpha: " in told and "over 10 pairs that two or more judged" in told


@pytest.mark.parametrize("names", [(), ("ana",), ("ana", "bo")], ids=["nobody", "one", "two who say tie of everything"])
def test_what_has_no_value_is_none_and_strict_json(tmp_path, names):
    desk = new_desk(tmp_path, 3)
    for name in names:
        for item in (1, 2, 3):
            say(desk, name, item, "tie")
    found = report_labels(LabelReportConfig(str(tmp_path / "labels.db")))
    assert found["agreement"]["alpha"] is None
    assert [pair["kappa"] for pair in found["agreement"]["pairs"]] == [None] * (len(names) == 2)
    json.dumps(found, allow_nan=False)
    assert len(found["annotators"]) == len(names)


def test_agreement_does_not_hang_on_which_answer_the_file_puts_first(tmp_path):
    """Two who see which answer is better agree far beyond chance, though the file's first one is always the better."""
    draw, said = random.Random(4), []
    for _ in range(200):
        said.append(["good" if draw.random() < 0.9 else "bad" for _ in range(2)])
    found = []
    for name, turned in (("as it is", False), ("turned", True)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            {"prompt": f"{i}?", "answers": ["Bad", "Good"] if turned and i % 2 else ["Good", "Bad"]} for i in range(200)
        ]
        items = read_items(write_rows(folder / "pairs.jsonl", rows))
        desk = Desk(make_labels(str(folder / "labels.db"), items, "pairs.jsonl", 1))
        for item, verdicts in enumerate(said, 1):
            for annotator, verdict in zip(("ana", "bo"), verdicts, strict=True):
                say(desk, annotator, item, verdict)
        found.append(figures(desk.store.votes(), 200)["agreement"])
    (as_it_is,), (turned,) = (one["pairs"] for one in found)
    same = sum(one == other for one, other in said) / 200
    assert as_it_is["kappa"]["value"] == pytest.approx(2 * same - 1) == turned["kappa"]["value"]
    assert found[0]["alpha"] == found[1]["alpha"]
    assert as_it_is["kappa"]["interval"][0] > 0.4


def test_annotators_who_judged_nothing_in_common_have_no_kappa(tmp_path):
    desk = new_desk(tmp_path, 4)
    for name, item in (("ana", 1), ("ana", 2), ("bo", 3), ("bo", 4)):
        say(desk, name, item, "good")
    found = figures(desk.store.votes(), desk.n_items)["agreement"]
    assert found == {
        "pairs": [{"annotators": ["ana", "bo"], "n": 0, "same": None, "kappa": None}],
        "alpha": None,
    }


def test_who_always_takes_the_left_one_is_found_and_who_takes_the_good_one_is_not(tmp_path):
    desk = new_desk(tmp_path, 100)
    for item in range(1, 101):
        say(desk, "left", item, "a")
        say(desk, "fair", item, "good")
    people = figures(desk.store.votes(), desk.n_items)["annotators"]
    assert people["left"]["first_shown"]["interval"][0] > 0.95
    low, high = people["fair"]["first_shown"]["interval"]
    assert low < 0.5 < high


def test_by_chance_agreement_is_near_0(tmp_path):
    desk, draw = new_desk(tmp_path, 120), random.Random(2)
    for item in range(1, 121):
        for name in ("ana", "bo", "cy"):
            say(desk, name, item, draw.choice(["good", "bad", "tie"]))
    found = figures(desk.store.votes(), desk.n_items)["agreement"]
    assert math.isclose(found["alpha"]["value"], 0, abs_tol=0.12)
    assert all(abs(pair["kappa"]["value"]) < 0.2 for pair in found["pairs"])
