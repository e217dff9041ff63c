"""Texts on their way to a trainer: cut, counted for people, thinned to a budget; and signs of life while it learns."""

from __future__ import annotations

import re
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
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
    learn(learner, trainer, prepared(texts, budget, n_bytes), n_bytes > 0)


def feed_knowing_characters(
    learner: tokenizers.Tokenizer,
    trainer_for: Callable[[str], Any],
    texts: Iterable[str],
    budget: int,
    n_bytes: int,
) -> None:
    """`feed` with the trainer that `trainer_for` makes once it knows the sorted characters of the text. The text waits
    in a temporary file; there a line's end stands between two texts, so words must end at line ends."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n") as file:
        seen = np.zeros(sys.maxunicode + 1, bool)
        for part in prepared(texts, budget, n_bytes):
            seen[np.frombuffer(part.encode("utf-32-le"), "<u4")] = True
            file.write(part + "\n")
        file.seek(0)
        lines = ("".join(found) for found in iter(lambda: file.readlines(PART_CHARACTERS), []))
        trainer = trainer_for("".join(map(chr, np.flatnonzero(seen))))
        learn(learner, trainer, lines, n_bytes > 0)


def learn(learner: tokenizers.Tokenizer, trainer: Any, texts: Iterable[str], telling: bool) -> None:
    """Let `trainer` learn from the texts as they are; `telling`: with signs of life once they are read."""
    done = threading.Event()
    signs = threading.Thread(target=show_signs, args=(done,), daemon=True)

    def stream() -> Iterator[str]:
        yield from texts
        if telling:
            signs.start()

    try:
        guarded(lambda: learner.train_from_iterator(stream(), trainer))
    finally:
        done.set()


def prepared(texts: Iterable[str], budget: int, n_bytes: int) -> Iterator[str]:
    """The texts, counted for people, thinned to the budget, in parts that a trainer takes linear time over."""
    return in_short_runs(within(counted(in_parts(texts), n_bytes), budget, n_bytes))


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
