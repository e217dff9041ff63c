"""Text that was read by the wrong encoding comes back; text that was right stays."""

from __future__ import annotations

import gzip
import json

import pytest

from fledge.data.cleaning.config import RepairConfig
from fledge.data.cleaning.repair import Repair, mend_mojibake
from fledge.data.document import Document

RIGHT = [
    "Größe, naïve café, señor, œuvre – “quoted” … 5 °C",
    "Съешь ещё этих мягких французских булок",
    "أهلا وسهلا بكم في هذا المكان",
    "中文维基百科的条目，以及标点。",
    "Tiếng Việt có nhiều dấu thanh ở mỗi từ",
    "यह हिन्दी का एक वाक्य है।",
    "smile 🙂 and 😀 — again 🎉",
]


def misread(text: str) -> str:
    """UTF-8 read as Windows-1252; the bytes that it lacks as Latin-1."""
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in text.encode())


def mended(text: str, **options: bool) -> str:
    return Repair(RepairConfig(**options))(Document("a", text)).text


@pytest.mark.parametrize("text", RIGHT)
def test_utf8_read_as_windows_1252_or_latin_1_comes_back(text):
    assert misread(text) != text
    assert mended(misread(text)) == text
    assert mended(text.encode().decode("latin-1")) == text
    assert mended(misread(misread(text))) == text


@pytest.mark.parametrize(
    "text",
    [
        *RIGHT,
        "CAFÉ” — passé…” JOSÉ— AMANHÃ” está» déjà… Ã",
        "une idée naïve…” dit-il à Noël",
        "£5 ± 2 µm, § 3, «à» ©2001",
    ],
)
def test_text_that_is_right_stays(text):
    assert mended(text) == text


def test_a_few_misread_characters_in_a_right_text_are_mended():
    assert mended("Thành phố lập năm 1455â€“1536, cao 565 Â°C") == "Thành phố lập năm 1455–1536, cao 565 °C"


def test_paragraphs_of_real_languages_stay_and_come_back(data_file):
    for language in ("ar", "de", "en", "es", "hi", "ru", "zh"):
        with gzip.open(data_file("bench_xquad") / f"xquad.{language}.json.gz", "rt", encoding="utf-8") as file:
            texts = [p["context"] for article in json.load(file)["data"] for p in article["paragraphs"]][::4]
        assert [text for text in texts if mend_mojibake(text) != text] == []
        assert [text for text in texts if mend_mojibake(misread(text)) != text] == []


def test_line_ends_controls_and_marks_are_made_one():
    text = "\ufeffa\r\nb\rc\x0bd\x85e\u2028f\x00g\x1b[0mh\ud800i\tj\u200fk\u200d"
    assert mended(text) == "a\nb\nc\nd\ne\nfg[0mh\ufffdi\tj\u200fk\u200d"
    assert mended(text, controls=False, newlines=False, mojibake=False) == text


def test_composition_is_asked_for():
    assert mended("cafe\u0301") == "cafe\u0301"
    assert mended("cafe\u0301", nfc=True) == "café"
