"""`length`: documents that are too short to say anything, or too long to be one."""

from __future__ import annotations

from collections import Counter

from fledge.data.cleaning.config import LengthConfig
from fledge.data.cleaning.step import Dropped
from fledge.data.document import Document
from fledge.data.words import word_lists


class Length:
    """Keeps documents of a number of words and characters."""

    def __init__(self, config: LengthConfig):
        self.config = config
        self.found: Counter[str] = Counter()

    def __call__(self, document: Document) -> Document | Dropped:
        config, n_characters = self.config, len(document.text)
        if n_characters < config.least_characters:
            return Dropped(f"fewer than {config.least_characters} characters")
        if config.most_characters and n_characters > config.most_characters:
            return Dropped(f"more than {config.most_characters} characters")
        n_words = sum(map(len, word_lists(document.text)))
        if n_words < config.least_words:
            return Dropped(f"fewer than {config.least_words} words")
        if config.most_words and n_words > config.most_words:
            return Dropped(f"more than {config.most_words} words")
        return document
