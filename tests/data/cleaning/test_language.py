"""The language of paragraphs and sentences that no profile was made of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fledge.data.cleaning import profiles
from fledge.data.cleaning.config import LanguageConfig
from fledge.data.cleaning.language import PROFILES, UNKNOWN, Language, gram_number, gram_numbers, identify
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.scripts import letters_by_script
from fledge.errors import ConfigError


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


@pytest.mark.parametrize("language", ["ar", "de", "en", "es", "hi", "ru", "vi", "zh"])
def test_paragraphs_of_xquad_are_told(data_file, language):
    [line] = lines_of(data_file("bench_xquad") / f"xquad.{language}.json.gz")
    texts = [p["context"] for article in json.loads(line)["data"] for p in article["paragraphs"]]
    assert sum(identify(text)[0] == language for text in texts) >= 0.98 * len(texts) > 100


def test_text_in_five_more_languages_is_told(data_file):
    names = {"finnish": "fi", "french": "fr", "german": "de", "portuguese": "pt", "swedish": "sv"}
    for line in lines_of(data_file("text_nltk_genesis") / "genesis.jsonl.gz"):
        row = json.loads(line)
        language = names.get(row["id"].partition("/")[2].removesuffix(".txt"))
        words = row["text"].split()
        texts = [" ".join(words[at : at + 60]) for at in range(0, len(words) - 60, 600)] if language else []
        assert sum(identify(text)[0] == language for text in texts) >= 0.95 * len(texts)
    japanese = lines_of(data_file("text_ja_wagahai") / "wagahaiwa_nekodearu.txt.gz")[:400]
    long = [text for text in japanese if len(text) > 40]
    assert sum(identify(text)[0] == "ja" for text in long) >= 0.98 * len(long) > 50


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Καλημέρα κόσμε", "el"),
        ("안녕하세요 세계", "ko"),
        ("สวัสดีชาวโลก", "th"),
        ("私は猫である", "ja"),
        ("床前明月光", "zh"),
        ("123 😀 \u200f !", UNKNOWN),
        ("", UNKNOWN),
        ("ᚠᚢᚦᚨᚱᚲ", UNKNOWN),
    ],
)
def test_a_script_of_one_language_decides(text, code):
    assert identify(text)[0] == code


def test_documents_in_other_languages_are_dropped_with_its_code():
    step = Language(LanguageConfig(keep=("en", "fr")))
    english = Document("a", "All human beings are born free and equal in dignity and rights.")
    assert step(english) is english
    assert step(Document("b", "Alle Menschen sind frei und gleich an Würde geboren.")) == Dropped("in de")
    assert step.found == {"en": 1, "de": 1}
    assert Language(LanguageConfig(keep=("en",), least_margin=9.0))(english) == Dropped("in und")  # the control


def test_a_language_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="language.keep: expected some of af, .* got tlh"):
        Language(LanguageConfig(keep=("en", "tlh")))


def test_numbers_of_letters_pairs_and_triples():
    numbers = set(gram_numbers("Ab, c").tolist())
    assert {gram_number(gram) for gram in (" ", "a", "ab", " ab", "b ", " c ")} <= numbers
    assert gram_number("ac") not in numbers


def test_scripts_are_counted_in_letters():
    assert letters_by_script("Привет, world! ×÷ 42") == {"Cyrillic": 6, "Latin": 5}


@pytest.mark.slow
def test_the_profiles_are_what_their_command_makes(data_file):
    made = profiles.page(data_file("text_udhr") / "udhr2.jsonl.gz")
    assert made == PROFILES.read_text(encoding="utf-8")
