"""Cleaning within `data build`: steps in order, what each did, equal digests however it is killed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.cli.main import main
from fledge.data.build import build
from fledge.data.cleaning.cleaner import STEPS, first_difference
from fledge.data.cleaning.config import (
    CleanConfig,
    ContaminationConfig,
    LanguageConfig,
    LengthConfig,
    NearDuplicatesConfig,
    PersonalConfig,
    RepairConfig,
)
from fledge.data.config import BuildConfig
from fledge.data.corpus import read_corpus, read_records
from fledge.errors import ConfigError, DataError
from fledge.lineage import verify
from tests.data.folders import essay, held_out_names, make

PROSE = "The ship left the harbour at dawn, and nobody that we knew had come to see it go with us"
EVERYTHING = (
    "repair",
    "boilerplate",
    "length",
    "repetition",
    "symbols",
    "personal",
    "contamination",
    "near_duplicates",
)


def prose(seed: int, sentences: int = 12) -> str:
    return " ".join(f"The {word} and the others have come to it with us." for word in essay(seed, sentences).split())


@pytest.fixture
def source(tmp_path) -> str:
    names = sorted(held_out_names(False, 12))
    files = {name: f"{essay(n, 300)}" for n, name in enumerate(names[:6])}
    files[names[6]] = essay(0, 300) + " and a little more"
    files[names[7]] = "short"
    files[names[8]] = f"{essay(8, 100)} write to jane@example.org or naÃ¯ve"
    files[names[9]] = f"{essay(9, 100)} {PROSE}"
    files[names[10]] = "over and over " * 60
    files[names[11]] = essay(1, 300) + "\x01"
    (tmp_path / "set.jsonl").write_text(json.dumps({"q": PROSE}))
    return make(tmp_path / "in", files)


def config_of(tmp_path: Path, **options) -> CleanConfig:
    evaluations = ContaminationConfig(evaluations=(tmp_path / "set.jsonl",))
    steps = tuple(step for step in EVERYTHING if step != "symbols")
    return CleanConfig(**{"steps": steps, "contamination": evaluations} | options)


def test_every_step_does_its_part_and_tells_it(tmp_path, source):
    out = tmp_path / "out"
    result = build(BuildConfig(out, source, clean=config_of(tmp_path)), json=True)
    names = sorted(held_out_names(False, 12))
    dropped = {
        record.path: (record.reason, record.closest) for record in read_records(out) if record.split == "dropped"
    }
    assert dropped == {
        names[6]: ("near_duplicates: of an earlier document", names[0]),
        names[7]: ("length: fewer than 50 words", ""),
        names[9]: ("contamination: holds items of set.jsonl", ""),
        names[10]: ("repetition: frequent 2-grams", ""),
        names[11]: ("exact duplicate", names[1]),  # without its control character
    }
    texts = "".join(document.text for document in read_corpus(out))
    assert "[email] or naïve" in texts and "jane@" not in texts
    steps = {row["step"]: row for row in result["cleaning"]}
    assert list(steps) == [*config_of(tmp_path).steps]
    assert {name: row["dropped_documents"] for name, row in steps.items() if row["dropped_documents"]} == {
        "length": 1,
        "repetition": 1,
        "contamination": 1,
        "near_duplicates": 1,
    }
    assert steps["repair"]["changed_documents"] == 2 and steps["repair"]["changed_bytes"] == 3
    assert steps["personal"]["found"] == {"email": 1}
    assert steps["length"]["dropped"] == [{"path": names[7], "reason": "fewer than 50 words", "begins": "short"}]
    assert steps["contamination"]["evaluations"][0]["closest"][0]["document"] == names[9]
    card = verify(out)
    assert card["facts"]["corpus"]["cleaning"] == result["cleaning"]
    assert "jane@" not in json.dumps(card)
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "corpus.jsonl", "documents.jsonl"]


def test_without_steps_text_is_taken_as_it_is(tmp_path, source):
    result = build(BuildConfig(tmp_path / "out", source), json=True)
    assert "cleaning" not in result
    assert any("\x01" in document.text for document in read_corpus(tmp_path / "out"))
    assert any("jane@" in document.text for document in read_corpus(tmp_path / "out"))


def test_steps_run_in_the_order_given(tmp_path):
    """Ten words with the address, eight characters shorter without: which step comes first decides."""
    text = "one two three four five six seven eight nine jane.doe@example.org"
    make(tmp_path / "in", {"a.txt": text, "b.txt": essay(1, 40)})
    reached = {}
    for steps in (("length", "personal"), ("personal", "length")):
        clean = CleanConfig(steps=steps, length=LengthConfig(least_words=13))
        out = tmp_path / "-".join(steps)
        build(BuildConfig(out, str(tmp_path / "in"), clean=clean), json=True)
        reached[steps] = {record.path for record in read_records(out) if record.split == "train"}
    assert reached[("length", "personal")] == {"a.txt", "b.txt"}
    assert reached[("personal", "length")] == {"b.txt"}


CHANGES = [
    {"steps": ("length", "repair")},
    {"length": LengthConfig(least_words=51)},
    {"repair": RepairConfig(nfc=True)},
    {"near_duplicates": NearDuplicatesConfig(threshold=0.7)},
    {"personal": PersonalConfig(kinds=("ip",))},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_an_option_of_a_step_in_use_builds_anew_and_no_other(tmp_path, source, change):
    clean = CleanConfig(steps=("repair", "length", "near_duplicates"))
    first = BuildConfig(tmp_path / "out", source, clean=clean)
    build(first, json=True)
    assert build(first, json=True)["reused_corpus"] is True
    again = build(replace(first, clean=replace(clean, **change)), json=True)
    assert again["reused_corpus"] is ("personal" in change)  # a step that is not in use


def test_an_evaluation_set_that_changed_builds_anew(tmp_path, source):
    config = BuildConfig(tmp_path / "out", source, clean=config_of(tmp_path))
    build(config, json=True)
    assert build(config, json=True)["reused_corpus"] is True
    (tmp_path / "set.jsonl").write_text(json.dumps({"q": essay(3, 20)}))
    assert build(config, json=True)["reused_corpus"] is False


class Killed(BaseException):
    """What no handler catches, like a signal."""


def test_a_build_killed_at_any_moment_comes_to_the_same_digest(tmp_path, source, monkeypatch):
    """Every document read, rename and removal in turn is the last thing that a run does; then it is run again."""
    wanted = build(BuildConfig(tmp_path / "fresh", source, clean=config_of(tmp_path)), json=True)["digest"]
    real = {name: getattr(os, name) for name in ("replace", "unlink", "mkdir")}
    killed = 0
    for moment in range(40):
        out = tmp_path / f"out{moment}"
        config = BuildConfig(out, source, clean=config_of(tmp_path))
        left = [moment]

        def counted(name, left=left, out=out):
            def call(target, *arguments, **options):
                if str(target).startswith(f"{out}/"):
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                return real[name](target, *arguments, **options)

            return call

        def step_counted(self, document, left=left, run=STEPS["length"].__call__):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return run(self, document)

        done = True
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, counted(name))
            patch.setattr(STEPS["length"], "__call__", step_counted)
            patch.setattr("fledge.data.cleaning.corpus.remove", lambda path: None)  # nothing tidies up
            try:
                build(config, json=True)
            except Killed:
                done, killed = False, killed + 1
        assert build(config, json=True)["digest"] == wanted
        assert sorted(path.name for path in out.iterdir()) == ["card.json", "corpus.jsonl", "documents.jsonl"]
        if done:
            break
    assert killed > 10


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    make(tmp_path / "in", {"a.txt": "short", "b.txt": "shorter"})
    with pytest.raises(DataError, match="expected documents to be left, got none of 2; 2 length: fewer than 50 words"):
        build(BuildConfig(tmp_path / "out", str(tmp_path / "in"), clean=CleanConfig(steps=("length",))), json=True)
    assert not list((tmp_path / "out").iterdir())


def test_a_document_left_blank_is_dropped_not_lost(tmp_path):
    make(tmp_path / "in", {"a.txt": "\x01\x02", "b.txt": essay(1, 9)})
    build(BuildConfig(tmp_path / "out", str(tmp_path / "in"), clean=CleanConfig(steps=("repair",))), json=True)
    assert {record.path: record.reason for record in read_records(tmp_path / "out") if record.split == "dropped"} == {
        "a.txt": "repair: nothing left"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": ("near_duplicates", "length")}, "near_duplicates once and last"),
        ({"steps": ("language",)}, r"set clean.language.keep=\[en\]"),
        ({"steps": ("contamination",)}, "set clean.contamination.evaluations"),
    ],
)
def test_steps_that_can_not_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**options)


def test_the_command_line_takes_steps_and_options(tmp_path, source, capsys):
    words = ["data", "build", "--source", source, "--out", str(tmp_path / "out"), "steps=[repair,length,language]"]
    assert main([*words, "clean.language.keep=[en,so,sw,de]", "--clean.length.least-words", "60"]) in (0, 1)
    assert "fewer than 60 words" in "".join(capsys.readouterr())
    assert main([*words, "clean.steps=[repiar]"]) == 2
    assert "repair" in capsys.readouterr().err
    assert main([*words, "clean.language.keep=[klingon]"]) == 2


def test_people_see_what_each_step_did(tmp_path, source, capsys):
    build(BuildConfig(tmp_path / "out", source, clean=config_of(tmp_path)))
    printed = capsys.readouterr().out
    assert "length          12 documents: 1 documents dropped (5 bytes)" in printed
    assert "why: 1 fewer than 50 words" in printed
    assert "or naÃ¯ve" in printed
    assert "set.jsonl: 1 of 1 items found" in printed
    assert "jane@" not in printed.split("personal  ")[1]


def test_examples_hide_what_the_personal_step_looks_for(tmp_path):
    make(tmp_path / "in", {"a.txt": f"jane@example.org {essay(1, 9)}", "b.txt": essay(2, 40)})
    for steps, shown in ((("length",), True), (("length", "personal"), False)):
        clean = CleanConfig(steps=steps, length=LengthConfig(least_words=20))
        out = tmp_path / "-".join(steps)
        build(BuildConfig(out, str(tmp_path / "in"), clean=clean), json=True)
        assert ("jane@" in (out / "card.json").read_text()) is shown


def test_the_first_difference_is_found_by_halving():
    assert [first_difference("abcdef", other) for other in ("abXdef", "abcdef", "", "abcdefg", "X")] == [2, 6, 0, 6, 0]


def test_language_step_in_a_build(tmp_path):
    english = "It was a bright cold day in April, and the clocks were striking thirteen as he went in."
    german = "Es war ein heller kalter Tag im April, und die Uhren schlugen gerade dreizehn, als er kam."
    make(tmp_path / "in", {"a.txt": english, "b.txt": german})
    clean = CleanConfig(steps=("language",), language=LanguageConfig(keep=("de",)))
    result = build(BuildConfig(tmp_path / "out", str(tmp_path / "in"), clean=clean), json=True)
    assert result["dropped"] == {"language: in en": 1}
    assert result["cleaning"][0]["found"] == {"de": 1, "en": 1}
