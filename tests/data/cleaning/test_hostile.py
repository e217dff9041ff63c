"""Documents made to hurt: each step gives a document that can be written, or a reason, in time linear in the text."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fledge.data.cleaning.cleaner import STEPS, Cleaner
from fledge.data.cleaning.config import (
    CleanConfig,
    ContaminationConfig,
    LanguageConfig,
    NearDuplicatesConfig,
)
from fledge.data.cleaning.minhash import NearDuplicates
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document

CHARACTERS = st.characters(codec=None) | st.sampled_from(
    "\x00\ud800\udfff\u200f\u202e\ufeffÃ©â€™Ð°@.:+()0123456789\n\t #…•-😀"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CleanConfig:
    path = tmp_path_factory.mktemp("sets") / "set.jsonl"
    path.write_text('{"q": "a set of nine words that says very little here"}\n')
    return CleanConfig(
        steps=tuple(STEPS),  # type: ignore[arg-type]
        language=LanguageConfig(keep=("en",)),
        contamination=ContaminationConfig(evaluations=(path,), action="cut"),
    )


@pytest.fixture(scope="module")
def steps(config) -> dict:
    cleaner = Cleaner(config)
    for step in cleaner.steps:
        if getattr(step, "observes", False):
            step.settle()
    return dict(zip(STEPS, cleaner.steps, strict=True))


@given(st.text(CHARACTERS, max_size=120))
@example("")
@example("\ud800" * 3)
@example("\u202e\u200fabc\u2066")
def test_any_text_goes_through_every_step(steps, text):
    for step in steps.values():
        left = step(Document("a", text))
        assert isinstance(left, Dropped | Document)
    repaired = steps["repair"](Document("a", text))
    repaired.text.encode()  # no lone surrogates
    assert steps["repair"](repaired) == repaired
    assert steps["personal"](steps["personal"](repaired)) == steps["personal"](repaired)
    near = NearDuplicates(NearDuplicatesConfig())
    near.add(text)
    near.add(text)
    assert near.clusters(lambda number: text) in ({}, {1: 0})


UNITS = {
    "one word": "a",
    "words": "ab cd ",
    "digits": "1",
    "parted digits": "12 34-",
    "addresses": "a.b@",
    "at signs": "@",
    "domains": "@a.b.",
    "colons": "a:b::",
    "emoji": "😀",
    "NULs": "\x00",
    "surrogates": "\ud800",
    "right to left": "\u200f\u202eא",
    "misread": "Ã©Ð°",
    "blank lines": " \n\n",
    "bullets": "• … #\n",
    "capitals and digits": "DE12 ABCD ",
    "key begins": "-----BEGIN PRIVATE KEY-----",
    "jwt": "eyJaaaaaaaaaaaa.eyJ",
    "plus": "+1 (2",
    "ideographs": "床前",
}


def seconds(step, text: str) -> float:
    began = time.process_time()
    step(Document("a", text))
    return time.process_time() - began


@pytest.mark.parametrize("name", UNITS)
def test_time_grows_with_the_text_and_not_faster(steps, name):
    """Eight times the text may take at most twenty times as long (quadratic: 64), or too little to measure."""
    unit = UNITS[name]
    for step_name, step in steps.items():
        short, long = unit * (16_384 // len(unit)), unit * (131_072 // len(unit))
        seconds(step, short)
        once = min(seconds(step, short) for _ in range(2))
        assert seconds(step, long) < max(0.25, 20 * once), step_name


def test_a_step_of_quadratic_time_is_found():
    def quadratic(document: Document) -> Document:
        return (
            document
            if all(document.text[:at].count("b") == 0 for at in range(0, len(document.text), 256))
            else document
        )

    once, long = seconds(quadratic, "a" * 16_384), seconds(quadratic, "a" * 131_072)
    assert long > 20 * once


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a", "ab cd ", "12.34 ", "😀"])
def test_a_line_of_a_hundred_million_characters(steps, unit):
    document = Document("a", unit * (100_000_000 // len(unit)))
    for name, step in steps.items():
        began = time.process_time()
        step(document)
        assert time.process_time() - began < 120, name
