"""Which scripts a text is written in: letters counted by their place in Unicode, on a sample. Imports no torch."""

from __future__ import annotations

import numpy as np

SAMPLE_CHARACTERS = 4096  # of a document
MOST_CHARACTERS = 1 << 24  # of all: later documents are not looked at
# First code point, script; each goes on to the next. "" is punctuation, digits, symbols.
BLOCKS = (
    (0x0, ""), (0x41, "Latin"), (0x5B, ""), (0x61, "Latin"), (0x7B, ""), (0xC0, "Latin"), (0x250, ""),
    (0x370, "Greek"), (0x400, "Cyrillic"), (0x530, "Armenian"), (0x590, "Hebrew"), (0x600, "Arabic"),
    (0x700, "other"), (0x750, "Arabic"), (0x780, "other"), (0x900, "Devanagari"), (0x980, "Bengali"),
    (0xA00, "other"), (0xB80, "Tamil"), (0xC00, "other"), (0xE00, "Thai"), (0xE80, "other"), (0x10A0, "Georgian"),
    (0x1100, "Hangul"), (0x1200, "Ethiopic"), (0x13A0, "other"), (0x1E00, "Latin"), (0x1F00, "Greek"),
    (0x2000, ""), (0x2E80, "Han"), (0x3000, ""), (0x3040, "Kana"), (0x3100, "Han"), (0x3130, "Hangul"),
    (0x3190, "Han"), (0xA000, "other"), (0xAC00, "Hangul"), (0xD7B0, "other"), (0xF900, "Han"), (0xFB00, "other"),
    (0xFB50, "Arabic"), (0xFE00, ""), (0xFF66, "Kana"), (0xFFA0, "other"), (0x10000, "other"), (0x1F000, ""),
    (0x20000, "Han"), (0x32000, "other"),
)  # fmt: skip
STARTS = np.array([start for start, _ in BLOCKS], np.uint32)
NAMES = [name for _, name in BLOCKS]


class Scripts:
    """Counts letters of the first characters of each document."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(BLOCKS), np.int64)
        self.n_characters = 0

    def add(self, text: str) -> None:
        if self.n_characters > MOST_CHARACTERS:
            return
        sample = text[:SAMPLE_CHARACTERS]
        self.n_characters += len(sample)
        codes = np.frombuffer(sample.encode("utf-32-le", "surrogatepass"), "<u4")
        self.counts += np.bincount(np.searchsorted(STARTS, codes, "right") - 1, minlength=len(BLOCKS))

    def shares(self) -> dict[str, float]:
        """Script -> its share of the letters, the largest first."""
        by_name: dict[str, int] = {}
        for name, count in zip(NAMES, self.counts.tolist(), strict=True):
            if name and count:
                by_name[name] = by_name.get(name, 0) + count
        total = sum(by_name.values())
        ordered = sorted(by_name.items(), key=lambda item: (-item[1], item[0]))
        return {name: round(count / total, 4) for name, count in ordered}
