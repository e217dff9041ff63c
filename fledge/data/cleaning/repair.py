"""`repair`: characters that are not what their author wrote. Encoding, control characters, line ends."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import replace

from fledge.data.cleaning.config import RepairConfig
from fledge.data.document import Document

NEWLINE = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb\ufffe\uffff]")
SURROGATE = re.compile("[\ud800-\udfff]")
LEAST_RUNS = 3  # that a text misread throughout has
MOST_ROUNDS = 3  # text that was misread twice, or three times


def character_of(byte: int) -> str:
    """What Windows-1252 reads a byte as; the five that it has no character for stay the control characters of Latin-1,
    as browsers have it."""
    try:
        return bytes([byte]).decode("cp1252")
    except UnicodeDecodeError:
        return chr(byte)


# Each byte from 0x80 may stand as its Windows-1252 character or as its Latin-1 one: both come in one text.
BYTE_OF = {chr(byte): byte for byte in range(0x80, 0x100)} | {character_of(byte): byte for byte in range(0x80, 0x100)}


def characters(low: int, high: int) -> str:
    """A character class of what the bytes from `low` to `high` are read as."""
    return "[" + "".join(re.escape(c) for c, byte in BYTE_OF.items() if low <= byte <= high) + "]"


LATER = characters(0x80, 0xBF)
SEQUENCE = (
    f"(?:{characters(0xC2, 0xDF)}{LATER}|{characters(0xE0, 0xEF)}{LATER}{{2}}|{characters(0xF0, 0xF4)}{LATER}{{3}})"
)
RUN = re.compile(f"{SEQUENCE}{{1,4096}}")
LEADS = re.compile("[ÂÃÄÅâï]")  # of é, ß, ń, œ, quotes, dashes and the byte-order mark
PUNCTUATION = set("‘’‚“”„–—…•")  # what may follow a capital letter in text that is right: CAFÉ”


class Repair:
    """Mends a document's characters. `found` counts what was mended, in documents."""

    def __init__(self, config: RepairConfig):
        self.config = config
        self.found: Counter[str] = Counter()

    def __call__(self, document: Document) -> Document:
        text = document.text
        for name, mend in (
            ("mojibake", mend_mojibake),
            ("newlines", mend_newlines),
            ("controls", mend_controls),
            ("nfc", compose),
        ):
            if getattr(self.config, name):
                mended = mend(text)
                self.found[name] += mended != text
                text = mended
        return document if text == document.text else replace(document, text=text)


def mend_newlines(text: str) -> str:
    return NEWLINE.sub("\n", text)


def mend_controls(text: str) -> str:
    if text.isascii() and text.isprintable():
        return text
    return SURROGATE.sub("\ufffd", CONTROL.sub("", text))


def compose(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def mend_mojibake(text: str) -> str:
    """The text with every run that is UTF-8 read as Windows-1252 or Latin-1 read as UTF-8."""
    if text.isascii():
        return text
    for _ in range(MOST_ROUNDS):
        mended = RUN.sub(read_again if misread_throughout(text) else read_again_if_plausible, text)
        if mended == text:
            break
        text = mended
    return text


def misread_throughout(text: str) -> bool:
    """Whether every character beyond ASCII is part of a run, and there are several: then each run is a misreading."""
    runs = 0
    at = 0
    for match in RUN.finditer(text):
        if not text[at : match.start()].isascii():
            return False
        at = match.end()
        runs += 1
    return runs >= LEAST_RUNS and text[at:].isascii()


def read_again(match: re.Match[str]) -> str:
    run = match.group()
    try:
        return bytes(BYTE_OF[character] for character in run).decode("utf-8")
    except UnicodeDecodeError:
        return run


def read_again_if_plausible(match: re.Match[str]) -> str:
    """The run read again unless it may be text that happens to look like one.

    Two sequences side by side are no chance. A single one is believed when its lead is one of Western text's and no
    word in capitals ends there before a quote or a dash (`CAFÉ”`, `AMANHÃ—`), and never an ideograph (`passé…”`).
    """
    run, mended = match.group(), read_again(match)
    if len(mended) > 1 and one_script(mended):
        return mended
    before = match.string[match.start() - 1 : match.start()]
    doubtful = not LEADS.match(run) or (len(run) == 2 and run[1] in PUNCTUATION and before.isupper())
    return run if doubtful else mended


def one_script(text: str) -> bool:
    """Whether the letters stand within one stretch of Unicode: an alphabet, or the ideographs."""
    pages = {ord(character) >> 8 if ord(character) < 0x2000 else 0x20 for character in text}
    return len(pages - {0x20}) <= 2
