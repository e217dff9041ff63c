"""`boilerplate`: lines that many documents share. Menus, notices and licences, found by counting, in any language."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fledge.data.cleaning.config import BoilerplateConfig
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.words import distinct, hash_of

BUFFER = 1 << 20  # hashes gathered before they are counted: 8 MB
LONGEST_SPLIT = 65536  # characters
BLANK_LINES = re.compile(r"\n\s*\n\s*\n")


class Boilerplate:
    """Takes out lines that stand in many documents; `observe` every document first. `found` counts lines taken out."""

    observes = True

    def __init__(self, config: BoilerplateConfig):
        self.config = config
        self.counts = LineCounts()
        self.phrases = re.compile("|".join(re.escape(phrase) for phrase in config.phrases) or "(?!)", re.IGNORECASE)
        self.found: Counter[str] = Counter()

    def observe(self, document: Document) -> None:
        self.counts.add(document.text)

    def settle(self) -> None:
        """Fix what is frequent: at least `documents` documents, and that share of those observed."""
        self.counts.merge()
        least = max(self.config.documents, int(np.ceil(self.config.share * self.counts.documents)))
        self.frequent = self.counts.at_least(least)
        self.repeated = self.counts.at_least(self.config.phrase_documents)

    def __call__(self, document: Document) -> Document | Dropped:
        if not self.frequent and not self.repeated:
            return document
        lines = document.text.split("\n")
        first, last = edges(lines, self.is_boilerplate)
        kept = [line for line in lines[first:last] if not self.anywhere(line)]
        if len(kept) == len(lines):
            return document
        self.found["lines"] += len(lines) - len(kept)
        text = BLANK_LINES.sub("\n\n", "\n".join(kept)).strip("\n")
        return replace(document, text=text) if text.strip() else Dropped("nothing but lines that many documents share")

    def is_boilerplate(self, line: str) -> bool:
        value = line_hash(line)
        if value in self.frequent:
            return True
        return value in self.repeated and self.phrases.search(line) is not None

    def anywhere(self, line: str) -> bool:
        """Whether the line is boilerplate, and long enough to be taken out of the middle of a document."""
        return len(line.split(None, self.config.words)) >= self.config.words and self.is_boilerplate(line)


def edges(lines: list[str], boilerplate: Callable[[str], bool]) -> tuple[int, int]:
    """What is left, [first, last), when lines of boilerplate, and blank ones beside them, are taken from both ends."""
    first, last = 0, len(lines)
    for at, line in enumerate(lines):
        if line.strip():
            if not boilerplate(line):
                break
            first = at + 1
    for at in range(len(lines) - 1, first - 1, -1):
        if lines[at].strip():
            if not boilerplate(lines[at]):
                break
            last = at
    return first, last


def line_hash(line: str) -> int:
    """A line's hash; space doesn't count, but within lines so long that their words would fill the memory."""
    return hash_of(" ".join(line.split()) if len(line) <= LONGEST_SPLIT else line.strip())


class LineCounts:
    """How many documents each line stands in: sorted hashes and counts, 12 bytes for each different line."""

    def __init__(self) -> None:
        self.documents = 0
        self.waiting: list[np.ndarray] = []
        self.n_waiting = 0
        self.hashes = np.zeros(0, np.uint64)
        self.counts = np.zeros(0, np.uint32)

    def add(self, text: str) -> None:
        """Count each different line of one document once."""
        own = {line_hash(line) for line in text.split("\n") if line.strip()}
        self.documents += 1
        self.waiting.append(np.fromiter(own, np.uint64, len(own)))
        self.n_waiting += len(own)
        if self.n_waiting >= BUFFER:
            self.merge()

    def merge(self) -> None:
        """Bring what waits into the counts."""
        fresh = np.concatenate([np.zeros(0, np.uint64), *self.waiting])
        self.waiting, self.n_waiting = [], 0
        hashes = distinct(np.concatenate([self.hashes, fresh]))
        counts = np.zeros(len(hashes), np.uint32)
        counts[np.searchsorted(hashes, self.hashes)] = self.counts
        counts += np.bincount(np.searchsorted(hashes, fresh), minlength=len(hashes)).astype(np.uint32)
        self.hashes, self.counts = hashes, counts

    def at_least(self, documents: int) -> set[int]:
        """The hashes of the lines that stand in so many documents."""
        return set(self.hashes[self.counts >= documents].tolist())
