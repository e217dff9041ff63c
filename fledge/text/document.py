"""`Document`: one text with a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text and its path, which names it and decides whether it is held out; `source` is the number of the source
    it is from, where a corpus has several."""

    path: str
    text: str
    source: int = 0

    @property
    def n_bytes(self) -> int:
        """Length in UTF-8 bytes."""
        return len(self.text) if self.text.isascii() else len(self.text.encode())

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text's UTF-8 bytes."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def domain(self) -> str:
        """What it is a sample of: the first folder of its path, or the file itself."""
        return self.path.partition("/")[0]
