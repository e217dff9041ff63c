"""`language`: which language a document is in. First by script, then by naive Bayes over letters, pairs and triples.

The profiles (languages.txt) are counts in the Universal Declaration of Human Rights; fledge/data/cleaning/profiles.py
makes the file. Only the beginning, middle and end of a long document are looked at.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fledge.data.cleaning.config import LanguageConfig
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.scripts import letters_by_script, sample
from fledge.errors import ConfigError

PROFILES = Path(__file__).parent / "languages.txt"
LETTERS = re.compile(r"[^\W\d_]+")
SMOOTHING = 0.5  # added to each count
UNKNOWN = "und"  # ISO 639-2 for undetermined
KANA = 0.03  # Japanese has at least this share of kana among its kana and ideographs; Chinese has none
OF_SCRIPT = {
    "Greek": "el",
    "Armenian": "hy",
    "Bengali": "bn",
    "Gurmukhi": "pa",
    "Gujarati": "gu",
    "Odia": "or",
    "Tamil": "ta",
    "Telugu": "te",
    "Kannada": "kn",
    "Malayalam": "ml",
    "Sinhala": "si",
    "Thai": "th",
    "Lao": "lo",
    "Tibetan": "bo",
    "Burmese": "my",
    "Georgian": "ka",
    "Hangul": "ko",
    "Khmer": "km",
}


class Language:
    """Keeps documents in some languages. `found` counts the documents in each."""

    def __init__(self, config: LanguageConfig):
        wrong = sorted(set(config.keep) - set(known_languages()))
        if wrong:
            raise ConfigError(f"language.keep: expected some of {', '.join(known_languages())}, got {wrong[0]}")
        self.config = config
        self.found: Counter[str] = Counter()

    def __call__(self, document: Document) -> Document | Dropped:
        code, margin = identify(document.text)
        if margin < self.config.least_margin:
            code = UNKNOWN
        self.found[code] += 1
        return document if code in self.config.keep else Dropped(f"in {code}")


def identify(text: str) -> tuple[str, float]:
    """The code of a text's language (ISO 639-1 where there is one; `und` without letters) and its lead over the second
    best in nats a character, infinite where the script decides."""
    letters = letters_by_script(text)
    ideographs = letters.get("Han", 0) + letters.get("Kana", 0)
    script = next(iter(letters), "")
    if script in ("Han", "Kana"):
        return ("ja" if letters.get("Kana", 0) >= KANA * ideographs else "zh"), float("inf")
    if script in OF_SCRIPT:
        return OF_SCRIPT[script], float("inf")
    if script not in profiles():
        return UNKNOWN, float("inf")
    return profiles()[script].best(sample(text))


@functools.cache
def known_languages() -> tuple[str, ...]:
    """Every code that `identify` can give but `und`, in order."""
    return tuple(sorted({"zh", "ja", *OF_SCRIPT.values(), *(c for p in profiles().values() for c in p.codes)}))


@dataclass(frozen=True)
class Profiles:
    """The languages of one script: `grams` [G], sorted, and the log-probability of each in each language [G, codes]."""

    codes: tuple[str, ...]
    grams: np.ndarray
    weights: np.ndarray

    def best(self, text: str) -> tuple[str, float]:
        grams = gram_numbers(text)
        place = np.minimum(np.searchsorted(self.grams, grams), len(self.grams) - 1)
        scores = self.weights[place[self.grams[place] == grams]].sum(axis=0)
        order = np.argsort(-scores, kind="stable")
        second = scores[order[1]] if len(order) > 1 else -np.inf
        return self.codes[order[0]], float(scores[order[0]] - second) / max(1, len(text))


def gram_numbers(text: str) -> np.ndarray:
    """A number for each letter, pair and triple of the words in lower case, a space before and after each, uint64."""
    words = " ".join(LETTERS.findall(text.lower()))
    codes = np.frombuffer(f" {words} ".encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    pairs = codes[:-1] << np.uint64(21) | codes[1:]
    return np.concatenate([codes, pairs, pairs[:-1] << np.uint64(21) | codes[2:]])


def gram_number(gram: str) -> int:
    """The number that `gram_numbers` has for one of one to three characters."""
    number = 0
    for character in gram:
        number = number << 21 | ord(character)
    return number


@functools.cache
def profiles() -> dict[str, Profiles]:
    """Profiles by script, from languages.txt: a line `script code total`, then `count gram gram …` in tabs."""
    by_script: dict[str, dict[str, tuple[int, dict[int, int]]]] = {}
    for line in PROFILES.read_text(encoding="utf-8").splitlines():
        head, *groups = line.split("\t")
        script, code, total = head.split(" ")
        counts = {}
        for group in groups:
            count, *grams = group.split(" ")
            counts.update(dict.fromkeys((gram_number(gram.replace("_", " ")) for gram in grams), int(count)))
        by_script.setdefault(script, {})[code] = (int(total), counts)
    return {script: profile(languages) for script, languages in by_script.items()}


def profile(languages: dict[str, tuple[int, dict[int, int]]]) -> Profiles:
    """Profiles from each language's total and counts, by multinomial naive Bayes with additive smoothing."""
    grams = np.array(sorted({gram for _, counts in languages.values() for gram in counts}), np.uint64)
    place = {int(gram): at for at, gram in enumerate(grams)}
    weights = np.full((len(grams), len(languages)), SMOOTHING)
    for column, (total, counts) in enumerate(languages.values()):
        for gram, count in counts.items():
            weights[place[gram], column] += count
        weights[:, column] = np.log(weights[:, column] / (total + SMOOTHING * len(grams)))
    return Profiles(tuple(languages), grams, weights)
