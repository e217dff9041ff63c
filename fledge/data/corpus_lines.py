"""The lines of corpus.jsonl as they are written: from UTF-8, and hashed on their way. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from typing import BinaryIO

import numpy as np

ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t"))
BEGINS = b'{"path": '  # every line
SPACE = 0x20  # below it stand the characters that JSON wants escaped


class CorpusLines:
    """Writes {"path", "text", "split"} a line to a file, the same bytes as `json.dumps` without `ensure_ascii`."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, path: str, text: bytes, split: str) -> None:
        """A document whose text is given in UTF-8."""
        place = json.dumps(path, ensure_ascii=False).encode()
        line = b"".join((BEGINS, place, b', "text": ', quoted(text), b', "split": "%s"}\n' % split.encode()))
        self.file.write(line)
        self.hash.update(line)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of what was written."""
        return self.hash.hexdigest()


def quoted(text: bytes) -> bytes:
    """A text in UTF-8 as a JSON string in UTF-8."""
    found = text
    for character, escape in ESCAPES:
        found = found.replace(character, escape)
    if len(found) and np.frombuffer(found, np.uint8).min() < SPACE:
        return json.dumps(text.decode(), ensure_ascii=False).encode()
    return b'"%s"' % found
