"""Texts on their way to a trainer: cut, counted for people, thinned to a budget; and signs of life while it learns."""

from __future__ import annotations

import re
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers

from fledge.log import Progress, clock, say, warn
from fledge.text.encoder import check_unicode, guarded

LONGEST_RUN = 1000  # characters: the trainers take quadratic time over one word
LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}")
PART_CHARACTERS = 1 << 16  # what is kept or left out together
SIGN_SECONDS = 10.0  # between signs of life


def feed(learner: tokenizers.Tokenizer, trainer: Any, texts: Iterable[str], budget: int, n_bytes: int) -> None:
    """Let `trainer` learn from the texts, `budget` UTF-8 bytes of them. With `n_bytes`, as many as expected, people
    see how much is read, and then every SIGN_SECONDS that the library, which tells nothing, is still at work."""
    done = threading.Event()
    signs = threading.Thread(target=show_signs, args=(done,), daemon=True)

    def stream() -> Iterator[str]:
        yield from in_short_runs(within(counted(in_parts(texts), n_bytes), budget, n_bytes))
        if n_bytes:
            signs.start()

    try:
        guarded(lambda: learner.train_from_iterator(stream(), trainer))
    finally:
        done.set()


def show_signs(done: threading.Event) -> None:
    """Lines until `done`, with the time since the text was read."""
    began = time.monotonic()
    while not done.wait(SIGN_SECONDS):
        say(f"learn tokens · {clock(time.monotonic() - began)} so far")


def in_parts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, the long ones cut into PART_CHARACTERS. Raises TokenizerError for a lone surrogate."""
    for text in texts:
        check_unicode(text)
        for start in range(0, len(text), PART_CHARACTERS):
            yield text[start : start + PART_CHARACTERS]


def counted(parts: Iterable[str], n_bytes: int) -> Iterator[str]:
    """The parts, with progress for people."""
    progress = Progress("read text, bytes", n_bytes) if n_bytes else None
    done = 0
    for part in parts:
        yield part
        if progress:
            done += len(part.encode())
            progress.update(min(done, n_bytes - 1))
    if progress:
        progress.close()


def in_short_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts with words of thousands of characters cut: each piece is a text of its own."""
    for text in texts:
        start = 0
        for run in LONG_RUN.finditer(text) if may_have_long_run(text) else ():
            yield text[start : run.end()]
            start = run.end()
        yield text[start:]


def may_have_long_run(text: str) -> bool:
    """Whether a half of LONGEST_RUN could lie in such a run: each run fills one, and this is far quicker to ask."""
    half = LONGEST_RUN // 2
    halves = (text[start : start + half] for start in range(0, len(text) - half + 1, half))
    return any(" " not in part or part.isspace() for part in halves)


def within(parts: Iterable[str], budget: int, n_bytes: int = 0) -> Iterator[str]:
    """Some of the parts, `budget` UTF-8 bytes at most. Of more text than that (`n_bytes`, if it is known) parts from
    everywhere are taken, always the same ones; of a stream of unknown length the first."""
    share = min(1.0, 0.95 * budget / n_bytes) if n_bytes > budget else 1.0
    given = 0
    for number, part in enumerate(parts, 1):
        if share < 1 and zlib.crc32(number.to_bytes(8, "little")) >= share * 2**32:
            continue
        given += len(part.encode())
        if given > budget:
            warn(f"the trainer takes {budget} bytes of text; the rest was left out")
            return
        yield part
    if share < 1:
        warn(f"the trainer takes {budget} bytes of text; it learnt from {given} taken from everywhere")
