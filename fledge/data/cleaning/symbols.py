"""`symbols`: documents that are no prose. Rae et al. 2021 (Gopher, arXiv 2112.11446), A.1.1.

A word is here what stands between spaces, with its marks.
"""

from __future__ import annotations

import re
from collections import Counter

from fledge.data.cleaning.config import SymbolsConfig
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.scripts import share_unspaced
from fledge.data.words import pieces

BULLET = re.compile(r"[•‣▪▸●○◦⁃∙*\-–—](?:\s|$)|[•‣▪▸●○◦⁃∙]")
ELLIPSES = ("...", "…")
UNSPACED = 0.3  # with more of its letters than this in scripts without spaces, words can't be measured


class Symbols:
    """Drops a document at the first rule that it breaks."""

    def __init__(self, config: SymbolsConfig):
        self.config = config
        self.found: Counter[str] = Counter()
        self.stop_words = {word.lower() for word in config.stop_words}

    def __call__(self, document: Document) -> Document | Dropped:
        config, text = self.config, document.text
        words: Counter[str] = Counter()
        for start, end in pieces(text):
            words.update(text[start:end].split())
        n_words = words.total()
        if not n_words:
            return Dropped("no words")
        ellipses = text.count("…") + text.count("...")
        if max(text.count("#"), ellipses) > config.most_symbols * n_words:
            return Dropped("hash signs or ellipses")
        lines = [line.strip() for line in text.split("\n") if line.strip()]
        if sum(1 for line in lines if BULLET.match(line)) > config.most_bullet_lines * len(lines):
            return Dropped("lines with bullets")
        if sum(1 for line in lines if line.endswith(ELLIPSES)) > config.most_ellipsis_lines * len(lines):
            return Dropped("lines that end in an ellipsis")
        if sum(n for word, n in words.items() if has_letter(word)) < config.least_alphabetic * n_words:
            return Dropped("words without letters")
        return self.of_spaced_text(document, words, n_words)

    def of_spaced_text(self, document: Document, words: Counter[str], n_words: int) -> Document | Dropped:
        """The rules that need words between spaces."""
        config = self.config
        if share_unspaced(document.text) > UNSPACED:
            return document
        mean = sum(len(word) * n for word, n in words.items()) / n_words
        if not config.least_mean_word <= mean <= config.most_mean_word:
            return Dropped("words too short or too long")
        bare = {word.strip(".,;:!?()\"'").lower() for word in words} if config.least_stop_words else set()
        if len(self.stop_words & bare) < config.least_stop_words:
            return Dropped("too few stop words")
        return document


def has_letter(word: str) -> bool:
    return word.isalpha() or any(map(str.isalpha, word))
