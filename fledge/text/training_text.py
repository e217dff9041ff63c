"""Texts on their way to a trainer: counted for people, cut where a word would be too long, thinned to a budget."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

from fledge.log import Progress, warn
from fledge.text.encoder import check_unicode

LONG_RUN = re.compile(r"\S{1000}|\s{1000}")  # the trainers take quadratic time over one word
PART_CHARACTERS = 1 << 16  # what is kept or left out together


def counted(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """The texts, with progress for people. Raises TokenizerError for a lone surrogate."""
    progress = Progress("read text, bytes", n_bytes) if n_bytes else None
    done = 0
    for text in texts:
        check_unicode(text)
        yield text
        done += len(text.encode()) if progress else 0
        if progress:
            progress.update(min(done, n_bytes - 1))
    if progress:
        progress.close()


def in_short_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts with words of thousands of characters cut: each piece is a text of its own."""
    for text in texts:
        start = 0
        for run in LONG_RUN.finditer(text):
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def within(texts: Iterable[str], budget: int, n_bytes: int = 0) -> Iterator[str]:
    """Parts of the texts, `budget` UTF-8 bytes at most. Of more text than that (`n_bytes`, if it is known) parts from
    everywhere are taken, always the same ones; of a stream of unknown length the first."""
    share = min(1.0, 0.95 * budget / n_bytes) if n_bytes > budget else 1.0
    given = number = 0
    for text in texts:
        for start in range(0, len(text), PART_CHARACTERS) if share < 1 or len(text) > PART_CHARACTERS else (0,):
            part = text[start : start + PART_CHARACTERS]
            number += 1
            if share < 1 and zlib.crc32(number.to_bytes(8, "little")) >= share * 2**32:
                continue
            given += len(part.encode("utf-8", "replace"))
            if given > budget:
                warn(f"the trainer takes {budget} bytes of text; the rest was left out")
                return
            yield part
    if share < 1:
        warn(f"the trainer takes {budget} bytes of text; it learnt from {given} taken from everywhere")
