"""Which scripts a text is written in, by its letters' blocks of Unicode. Imports no torch."""

from __future__ import annotations

import numpy as np

# First code point and script of each stretch, in rising order; "" is none that says anything.
STRETCHES: tuple[tuple[int, str], ...] = (
    (0x0, ""),
    (0x41, "Latin"),
    (0x5B, ""),
    (0x61, "Latin"),
    (0x7B, ""),
    (0xC0, "Latin"),
    (0xD7, ""),
    (0xD8, "Latin"),
    (0xF7, ""),
    (0xF8, "Latin"),
    (0x2B0, ""),
    (0x370, "Greek"),
    (0x400, "Cyrillic"),
    (0x530, "Armenian"),
    (0x590, "Hebrew"),
    (0x600, "Arabic"),
    (0x700, ""),
    (0x900, "Devanagari"),
    (0x980, "Bengali"),
    (0xA00, "Gurmukhi"),
    (0xA80, "Gujarati"),
    (0xB00, "Odia"),
    (0xB80, "Tamil"),
    (0xC00, "Telugu"),
    (0xC80, "Kannada"),
    (0xD00, "Malayalam"),
    (0xD80, "Sinhala"),
    (0xE00, "Thai"),
    (0xE80, "Lao"),
    (0xF00, "Tibetan"),
    (0x1000, "Burmese"),
    (0x10A0, "Georgian"),
    (0x1100, "Hangul"),
    (0x1200, "Ethiopic"),
    (0x13A0, ""),
    (0x1780, "Khmer"),
    (0x1800, ""),
    (0x1E00, "Latin"),
    (0x1F00, "Greek"),
    (0x2000, ""),
    (0x3041, "Kana"),
    (0x3100, ""),
    (0x3400, "Han"),
    (0x4DC0, ""),
    (0x4E00, "Han"),
    (0xA000, ""),
    (0xAC00, "Hangul"),
    (0xD7A4, ""),
    (0xF900, "Han"),
    (0xFB00, ""),
    (0xFB50, "Arabic"),
    (0xFE00, ""),
    (0xFE70, "Arabic"),
    (0xFEFF, ""),
    (0xFF66, "Kana"),
    (0xFFA0, ""),
    (0x20000, "Han"),
    (0x32000, ""),
)
FIRSTS = np.array([first for first, _ in STRETCHES], np.uint32)
SCRIPTS = tuple(sorted({script for _, script in STRETCHES}))  # "" is the first
SCRIPT_OF_STRETCH = np.array([SCRIPTS.index(script) for _, script in STRETCHES])
UNSPACED = ("Han", "Kana", "Thai", "Lao", "Khmer", "Burmese", "Tibetan")
SAMPLE_CHARACTERS = 400
MOST_CHARACTERS = 1 << 24  # that `Scripts` looks at in all
FIRST_CHARACTERS = 4096  # ... and of each document


def sample(text: str) -> str:
    """The text, or its beginning, middle and end if it is long."""
    if len(text) <= 3 * SAMPLE_CHARACTERS:
        return text
    middle = (len(text) - SAMPLE_CHARACTERS) // 2
    return "\n".join((text[:SAMPLE_CHARACTERS], text[middle : middle + SAMPLE_CHARACTERS], text[-SAMPLE_CHARACTERS:]))


def script_numbers(text: str) -> np.ndarray:
    """The index in `SCRIPTS` of each character's script, int64 [characters]; 0 for none."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return SCRIPT_OF_STRETCH[np.searchsorted(FIRSTS, codes, side="right") - 1]


def letters_by_script(text: str) -> dict[str, int]:
    """How many letters of a sample of the text each script has, most first."""
    counts = np.bincount(script_numbers(sample(text)), minlength=len(SCRIPTS))[1:]
    order = np.argsort(-counts, kind="stable")
    return {SCRIPTS[at + 1]: int(counts[at]) for at in order if counts[at]}


def share_unspaced(text: str) -> float:
    """The share of the text's letters that is in scripts written without spaces."""
    letters = letters_by_script(text)
    return sum(letters.get(script, 0) for script in UNSPACED) / max(1, sum(letters.values()))


class Scripts:
    """Counts letters of the first characters of each document."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(SCRIPTS), np.int64)
        self.n_characters = 0

    def add(self, text: str) -> None:
        if self.n_characters > MOST_CHARACTERS:
            return
        first = text[:FIRST_CHARACTERS]
        self.n_characters += len(first)
        self.counts += np.bincount(script_numbers(first), minlength=len(SCRIPTS))

    def shares(self) -> dict[str, float]:
        """Script -> its share of the letters, the largest first."""
        counts = {
            script: count for script, count in zip(SCRIPTS, self.counts.tolist(), strict=True) if script and count
        }
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return {script: round(count / sum(counts.values()), 4) for script, count in ordered}
